"""Parameter-efficient fine-tuning: transforms of spec trees, and of the matching parameters."""

from llmjax.peft import files, freeze, fused, ia3, lora, targets
from llmjax.peft.ia3 import Ia3Config
from llmjax.peft.lora import LoraConfig
from llmjax.peft.quantized import quantize
from llmjax.peft.transform import add, attach, extract, merge, trained, without

__all__ = [
    "Ia3Config",
    "LoraConfig",
    "add",
    "attach",
    "extract",
    "files",
    "freeze",
    "fused",
    "ia3",
    "lora",
    "merge",
    "quantize",
    "targets",
    "trained",
    "without",
]
