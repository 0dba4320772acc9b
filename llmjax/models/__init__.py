"""Models as a spec tree and pure functions over the matching tree of arrays."""

from llmjax.models.attention import KVCache, empty_cache, put_rows
from llmjax.models.config import ModelConfig
from llmjax.models.decoding import for_decoding
from llmjax.models.experts import Routing, balance_loss
from llmjax.models.families import (
    FAMILIES,
    bert,
    deberta,
    electra,
    gemma2,
    gemma3,
    gpt2,
    llama,
    mistral,
    modernbert,
    olmo2,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    with_head,
)
from llmjax.models.heads import lm_weight, logits, pooled, segment_rewards
from llmjax.models.options import (
    Attention,
    Disentangled,
    Dropout,
    Embedding,
    Experts,
    Head,
    Pipeline,
    Rope,
)
from llmjax.models.placement import require_fits
from llmjax.models.prefix import longest_row
from llmjax.models.transformer import Output, apply, forward, spec

__all__ = [
    "FAMILIES",
    "Attention",
    "Disentangled",
    "Dropout",
    "Embedding",
    "Experts",
    "Head",
    "KVCache",
    "ModelConfig",
    "Output",
    "Pipeline",
    "Rope",
    "Routing",
    "apply",
    "balance_loss",
    "bert",
    "deberta",
    "electra",
    "empty_cache",
    "for_decoding",
    "forward",
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "lm_weight",
    "logits",
    "longest_row",
    "mistral",
    "modernbert",
    "olmo2",
    "pooled",
    "put_rows",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "require_fits",
    "roberta",
    "segment_rewards",
    "spec",
    "with_head",
]
