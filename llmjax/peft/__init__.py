"""Parameter-efficient fine-tuning: transforms of spec trees and of the matching parameters."""

from llmjax.peft import adapter, files, freeze, fused, ia3, lora, prefix, prefix_files, targets
from llmjax.peft.adapter import AdapterConfig
from llmjax.peft.ia3 import Ia3Config
from llmjax.peft.lora import LoraConfig, LoraRule
from llmjax.peft.method import MethodConfig
from llmjax.peft.prefix import PrefixConfig
from llmjax.peft.quantized import quantize
from llmjax.peft.transform import add, attach, extract, merge, trained, without

__all__ = [
    "AdapterConfig",
    "Ia3Config",
    "LoraConfig",
    "LoraRule",
    "MethodConfig",
    "PrefixConfig",
    "adapter",
    "add",
    "attach",
    "extract",
    "files",
    "freeze",
    "fused",
    "ia3",
    "lora",
    "merge",
    "prefix",
    "prefix_files",
    "quantize",
    "targets",
    "trained",
    "without",
]
