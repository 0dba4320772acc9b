"""The config.json tables of decoders."""

from collections.abc import Callable, Mapping
from typing import Any

from llmjax import models
from llmjax.hf.families import special
from llmjax.hf.families.checks import check
from llmjax.hf.families.family import REQUIRED, Family


def _decoder(classes: str, base: Callable[..., models.ModelConfig], **defaults: Any) -> Family:
    """A family with Llama's field names.

    Args:
        classes: as for `Family`.
        base: as for `Family`.
        **defaults: defaults that differ from Llama's; also additional `fields`, `fixed`,
            `specials` and `suffixes`, and `without`, the names of fields to leave out.
    """
    fields = {
        "vocab_size": ("vocab_size", REQUIRED),
        "num_hidden_layers": ("num_layers", REQUIRED),
        "hidden_size": ("embed_dim", REQUIRED),
        "num_attention_heads": ("num_heads", REQUIRED),
        "num_key_value_heads": ("num_kv_heads", 0),
        "head_dim": ("head_dim", 0),
        "intermediate_size": ("mlp_dim", REQUIRED),
        "max_position_embeddings": ("max_length", 2048),
        "rms_norm_eps": ("norm_epsilon", 1e-6),
        "hidden_act": ("activation", "silu"),
        "initializer_range": ("init_std", 0.02),
        "tie_word_embeddings": ("tied", False),
    }
    more = defaults.pop("fields", {})
    fixed = defaults.pop("fixed", {})
    specials = defaults.pop("specials", (special.rope(10000.0),))
    without = defaults.pop("without", ())
    suffixes = defaults.pop("suffixes", {})
    fields = {
        theirs: (ours, defaults.get(theirs, default))
        for theirs, (ours, default) in (fields | more).items()
        if theirs not in without
    }
    dropout = {"attention_dropout": ("attention",)}
    return Family(classes, base, fields, dropout, fixed, specials, suffixes)


def _first_are_global(fields: Mapping[str, Any], count: int) -> list[str]:
    """Qwen: with sliding windows, layers from max_window_layers on are local."""
    if not fields.get("use_sliding_window", False) or fields.get("sliding_window", 4096) is None:
        return ["full_attention"] * count
    first = fields.get("max_window_layers", 28)
    check("max_window_layers", first, int)
    kinds = ("full_attention", "sliding_attention")
    return [kinds[index >= first] for index in range(count)]


def _every(period: int) -> Callable[[Mapping[str, Any], int], list[str]]:
    """Gemma: every n-th layer is global."""

    def kinds(fields, count):
        n = fields.get("sliding_window_pattern") or period
        check("sliding_window_pattern", n, int)
        return [
            "sliding_attention" if (index + 1) % n else "full_attention" for index in range(count)
        ]

    return kinds


_QWEN_KINDS = special.layer_kinds(
    _first_are_global, ("sliding_window", 4096), switch="use_sliding_window"
)
_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32_768}
_GEMMA = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "without": ("hidden_act",),
    "fixed": {"attention_bias": False, "use_bidirectional_attention": False},
}
_GEMMA_FIELDS = {
    "hidden_activation": ("activation", "gelu_pytorch_tanh"),
    "query_pre_attn_scalar": ("attention.scale_dim", 256),
}

FAMILIES = {
    "gpt2": Family(
        classes="GPT2",
        base=models.gpt2,
        fields={
            "vocab_size": ("vocab_size", REQUIRED),
            "n_layer": ("num_layers", REQUIRED),
            "n_embd": ("embed_dim", REQUIRED),
            "n_head": ("num_heads", REQUIRED),
            "n_positions": ("max_length", 1024),
            "n_inner": ("mlp_dim", 0),
            "layer_norm_epsilon": ("norm_epsilon", 1e-5),
            "activation_function": ("activation", "gelu_new"),
            "initializer_range": ("init_std", 0.02),
            "tie_word_embeddings": ("tied", True),
        },
        dropout={
            "embd_pdrop": ("embedding",),
            "attn_pdrop": ("attention",),
            "resid_pdrop": ("hidden",),
        },
        fixed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        suffixes={"lm": "LMHeadModel"},
    ),
    "llama": _decoder("Llama", models.llama, fixed={"attention_bias": False, "mlp_bias": False}),
    "mistral": _decoder(
        "Mistral",
        models.mistral,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        specials=(special.rope(10000.0), special.sliding_window()),
    ),
    "qwen2": _decoder(
        "Qwen2",
        models.qwen2,
        **_QWEN,
        without=("head_dim",),
        specials=(special.rope(10000.0), _QWEN_KINDS),
    ),
    "qwen3": _decoder(
        "Qwen3",
        models.qwen3,
        **_QWEN,
        head_dim=128,
        fixed={"attention_bias": False},
        specials=(special.rope(10000.0), _QWEN_KINDS),
    ),
    "qwen3_moe": _decoder(
        "Qwen3Moe",
        models.qwen3_moe,
        **_QWEN | {"num_key_value_heads": 4},
        fields={
            "num_experts": ("experts.count", 128),
            "num_experts_per_tok": ("experts.per_token", 8),
            "moe_intermediate_size": ("experts.dim", 768),
            "norm_topk_prob": ("experts.normalized", False),
            "router_aux_loss_coef": ("experts.balance", 0.001),
        },
        fixed={
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
        },
    ),
    "gemma2": _decoder(
        "Gemma2",
        models.gemma2,
        **_GEMMA,
        max_position_embeddings=8192,
        fields=_GEMMA_FIELDS
        | {
            "attn_logit_softcapping": ("attention.cap", 50.0),
            "final_logit_softcapping": ("head.cap", 30.0),
        },
        specials=(
            special.rope(10000.0),
            special.layer_kinds(_every(2), ("sliding_window", 4096)),
        ),
    ),
    "gemma3_text": _decoder(
        "Gemma3",
        models.gemma3,
        suffixes={"none": "TextModel", "classification": "TextForSequenceClassification"},
        **_GEMMA,
        max_position_embeddings=131_072,
        fields=_GEMMA_FIELDS
        | {
            "attn_logit_softcapping": ("attention.cap", 0.0),
            "final_logit_softcapping": ("head.cap", 0.0),
        },
        specials=(
            special.rope(1e6, 1e4),
            special.layer_kinds(_every(6), ("sliding_window", 4096)),
        ),
    ),
    "olmo2": _decoder(
        "Olmo2",
        models.olmo2,
        rms_norm_eps=1e-5,
        without=("head_dim",),
        fixed={"attention_bias": False},
    ),
}
