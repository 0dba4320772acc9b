"""The config.json tables of encoders."""

from typing import Any

from llmjax import models
from llmjax.hf.families import special
from llmjax.hf.families.checks import check
from llmjax.hf.families.family import REQUIRED, Family

_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", REQUIRED),
    "num_hidden_layers": ("num_layers", REQUIRED),
    "hidden_size": ("embed_dim", REQUIRED),
    "num_attention_heads": ("num_heads", REQUIRED),
    "intermediate_size": ("mlp_dim", REQUIRED),
    "max_position_embeddings": ("max_length", 512),
    "type_vocab_size": ("embedding.token_types", 2),
    "layer_norm_eps": ("norm_epsilon", 1e-12),
    "hidden_act": ("activation", "gelu"),
    "initializer_range": ("init_std", 0.02),
}
_WITHOUT_ROWS = {name: f for name, f in _FIELDS.items() if name != "max_position_embeddings"}
_DROPOUT = {
    # The dropout before a head's output follows the hidden dropout unless a file sets it.
    "hidden_dropout_prob": ("hidden", "embedding", "classifier"),
    "attention_probs_dropout_prob": ("attention",),
    "classifier_dropout": ("classifier",),
}
_FIXED = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
}


def _every_third(fields: Any, count: int) -> list[str]:
    """ModernBERT: every n-th layer is global, starting with the first."""
    n = fields.get("global_attn_every_n_layers") or 3
    check("global_attn_every_n_layers", n, int)
    return ["sliding_attention" if index % n else "full_attention" for index in range(count)]


FAMILIES = {
    "bert": Family(
        "Bert",
        models.bert,
        _FIELDS,
        _DROPOUT,
        _FIXED,
        next_sentence="ForPreTraining",
    ),
    "roberta": Family(
        "Roberta",
        models.roberta,
        _WITHOUT_ROWS,
        _DROPOUT,
        _FIXED,
        specials=(special.padded_positions(),),
    ),
    "electra": Family(
        "Electra",
        models.electra,
        _FIELDS | {"embedding_size": ("embedding.dim", 128)},
        _DROPOUT,
        _FIXED,
    ),
    "modernbert": Family(
        "ModernBert",
        models.modernbert,
        {
            "vocab_size": ("vocab_size", REQUIRED),
            "num_hidden_layers": ("num_layers", REQUIRED),
            "hidden_size": ("embed_dim", REQUIRED),
            "num_attention_heads": ("num_heads", REQUIRED),
            "intermediate_size": ("mlp_dim", REQUIRED),
            "max_position_embeddings": ("max_length", 8192),
            "norm_eps": ("norm_epsilon", 1e-5),
            "hidden_activation": ("activation", "gelu"),
            "initializer_range": ("init_std", 0.02),
            "tie_word_embeddings": ("tied", True),
        },
        {
            "embedding_dropout": ("embedding",),
            "attention_dropout": ("attention",),
            "classifier_dropout": ("classifier",),
        },
        {
            "norm_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "mlp_dropout": 0.0,
            "decoder_bias": True,
            "classifier_bias": False,
        },
        specials=(
            special.rope(160_000.0, 10_000.0),
            special.layer_kinds(_every_third, ("local_attention", 128), half=True),
            special.pooling(),
            special.padding(50283),
        ),
    ),
    "deberta-v2": Family(
        "DebertaV2",
        models.deberta,
        _FIELDS
        | {
            "type_vocab_size": ("embedding.token_types", 0),
            "layer_norm_eps": ("norm_epsilon", 1e-7),
            "share_att_key": ("disentangled.shared", False),
            "mask_decoder": ("disentangled.mask_decoder", 0),  # ours, not in transformers
            "conv_act": ("disentangled.convolution_activation", "tanh"),
        },
        {
            "hidden_dropout_prob": ("hidden", "embedding", "classifier"),
            "attention_probs_dropout_prob": ("attention",),
            "cls_dropout": ("classifier",),
        },
        {
            "legacy": True,
            "tie_word_embeddings": True,
            "pooler_hidden_act": "gelu",
            "pooler_dropout": 0.0,
        },
        specials=(special.relative_positions(),),
    ),
}
