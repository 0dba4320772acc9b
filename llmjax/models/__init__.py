"""Models as a spec tree and pure functions over the matching tree of arrays."""

from llmjax.models.attention import KVCache, empty_cache
from llmjax.models.config import Dropout, ModelConfig
from llmjax.models.decoding import for_decoding
from llmjax.models.families import gpt2, llama
from llmjax.models.heads import lm_weight, logits
from llmjax.models.transformer import apply, spec

__all__ = [
    "Dropout",
    "KVCache",
    "ModelConfig",
    "apply",
    "empty_cache",
    "for_decoding",
    "gpt2",
    "llama",
    "lm_weight",
    "logits",
    "spec",
]
