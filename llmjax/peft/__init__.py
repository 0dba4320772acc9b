"""Parameter-efficient fine-tuning: transforms of spec trees, and of the matching parameters."""

from llmjax.peft import adapter, freeze, ia3, lora, prefix
from llmjax.peft.adapter import AdapterConfig
from llmjax.peft.ia3 import Ia3Config
from llmjax.peft.lora import LoraConfig
from llmjax.peft.prefix import PrefixConfig
from llmjax.peft.transform import add, attach, extract, merge, trained, without

__all__ = [
    "AdapterConfig",
    "Ia3Config",
    "LoraConfig",
    "PrefixConfig",
    "adapter",
    "add",
    "attach",
    "extract",
    "freeze",
    "ia3",
    "lora",
    "merge",
    "prefix",
    "trained",
    "without",
]
