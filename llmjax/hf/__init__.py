"""Hugging Face checkpoints, converted to parameters and back."""

from llmjax.hf.checkpoint import copy_tokenizer, load, load_config, save
from llmjax.hf.config import config_from_hf, config_to_hf
from llmjax.hf.state import from_state, lazy_state, to_state

__all__ = [
    "config_from_hf",
    "config_to_hf",
    "copy_tokenizer",
    "from_state",
    "lazy_state",
    "load",
    "load_config",
    "save",
    "to_state",
]
