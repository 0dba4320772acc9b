"""Decoder families: model configurations and names in checkpoints."""

import functools
from typing import Any

from llmjax.models.config import ModelConfig
from llmjax.models.families.names import INTO_HEADS, OUT_OF_HEADS, Family, Names, linear, norm
from llmjax.models.options import Attention, Dropout, Embedding, Experts, Head, Rope

_GPT2 = "transformer.h.{}."
_LLAMA = "model.layers.{}."


def _gpt2_third(name: str, index: int) -> Names:
    """A third of the fused projection, whose weight is [in, out] as in transformers' Conv1D."""
    layouts = "d (h c) -> d h c", "(h c) -> h c"
    return linear(f"layers/attention/{name}", f"{_GPT2}attn.c_attn", *layouts, (index, 3, -1))


GPT2_NAMES: Names = {
    "embedding": ("transformer.wte.weight", "v d -> v d"),
    "positions": ("transformer.wpe.weight", "s d -> s d"),
    **norm("final_norm", "transformer.ln_f"),
    **norm("layers/attention_norm", f"{_GPT2}ln_1"),
    **_gpt2_third("query", 0),
    **_gpt2_third("key", 1),
    **_gpt2_third("value", 2),
    **linear("layers/attention/out", f"{_GPT2}attn.c_proj", "(h c) d -> h c d", "d -> d"),
    **norm("layers/mlp_norm", f"{_GPT2}ln_2"),
    **linear("layers/mlp/up", f"{_GPT2}mlp.c_fc", "d f -> d f", "f -> f"),
    **linear("layers/mlp/down", f"{_GPT2}mlp.c_proj", "f d -> f d", "d -> d"),
}

LLAMA_NAMES: Names = {
    "embedding": ("model.embed_tokens.weight", "v d -> v d"),
    **norm("final_norm", "model.norm"),
    **norm("layers/attention_norm", f"{_LLAMA}input_layernorm"),
    **linear("layers/attention/query", f"{_LLAMA}self_attn.q_proj", INTO_HEADS, "(h c) -> h c"),
    **linear("layers/attention/key", f"{_LLAMA}self_attn.k_proj", INTO_HEADS, "(h c) -> h c"),
    **linear("layers/attention/value", f"{_LLAMA}self_attn.v_proj", INTO_HEADS, "(h c) -> h c"),
    **linear("layers/attention/out", f"{_LLAMA}self_attn.o_proj", OUT_OF_HEADS, "d -> d"),
    **norm("layers/attention/query_norm", f"{_LLAMA}self_attn.q_norm", "c -> c"),
    **norm("layers/attention/key_norm", f"{_LLAMA}self_attn.k_norm", "c -> c"),
    **norm("layers/mlp_norm", f"{_LLAMA}post_attention_layernorm"),
    **linear("layers/mlp/gate", f"{_LLAMA}mlp.gate_proj", "f d -> d f", "f -> f"),
    **linear("layers/mlp/up", f"{_LLAMA}mlp.up_proj", "f d -> d f", "f -> f"),
    **linear("layers/mlp/down", f"{_LLAMA}mlp.down_proj", "d f -> f d", "d -> d"),
}

_EXPERT = f"{_LLAMA}mlp.experts.{{}}."
QWEN3_MOE_NAMES: Names = LLAMA_NAMES | {
    "layers/experts/router": (f"{_LLAMA}mlp.gate.weight", "e d -> d e"),
    "layers/experts/gate": (f"{_EXPERT}gate_proj.weight", "f d -> d f"),
    "layers/experts/up": (f"{_EXPERT}up_proj.weight", "f d -> d f"),
    "layers/experts/down": (f"{_EXPERT}down_proj.weight", "d f -> f d"),
}

GEMMA_NAMES: Names = (
    LLAMA_NAMES
    | norm("layers/attention_out_norm", f"{_LLAMA}post_attention_layernorm")
    | norm("layers/mlp_norm", f"{_LLAMA}pre_feedforward_layernorm")
    | norm("layers/mlp_out_norm", f"{_LLAMA}post_feedforward_layernorm")
)

OLMO2_NAMES: Names = (
    LLAMA_NAMES
    | norm("layers/attention_out_norm", f"{_LLAMA}post_attention_layernorm")
    | norm("layers/mlp_out_norm", f"{_LLAMA}post_feedforward_layernorm")
    | norm("layers/attention/query_norm", f"{_LLAMA}self_attn.q_norm", "(h c) -> h c")
    | norm("layers/attention/key_norm", f"{_LLAMA}self_attn.k_norm", "(h c) -> h c")
)

_LM = (Head(), {"head": ("lm_head.weight", "v d -> v d")})


def _heads(tokens: str) -> dict[str, tuple[Head, Names]]:
    """The heads of decoders in transformers; `tokens` names that for token classification."""
    outputs = {
        "classification": Head("classification"),
        "reward": Head("reward"),
        "tokens": Head("tokens", bias=True),
        "value": Head("value", bias=True),
        "span": Head("span", bias=True),
    }
    theirs = {"tokens": tokens, "value": tokens, "span": "qa_outputs"}
    heads = {
        kind: (head, linear("head/out", theirs.get(kind, "score"), "n d -> d n", "n -> n"))
        for kind, head in outputs.items()
    }
    return {"none": (Head("none"), {}), "lm": _LM, **heads}


_llama = functools.partial(Family, heads=_heads("score"), prefix="model.")

FAMILIES = {
    "gpt2": Family(GPT2_NAMES, _heads("classifier"), "transformer."),
    "llama": _llama(LLAMA_NAMES, prefixes={"span": "transformer."}),
    "mistral": _llama(LLAMA_NAMES),
    "qwen2": _llama(LLAMA_NAMES, prefixes={"span": "transformer."}),
    "qwen3": _llama(LLAMA_NAMES, prefixes={"span": "transformer."}),
    "qwen3_moe": _llama(QWEN3_MOE_NAMES, prefixes={"span": "transformer."}),
    "gemma2": _llama(GEMMA_NAMES),
    "gemma3_text": _llama(GEMMA_NAMES),
    "olmo2": _llama(OLMO2_NAMES),
}


def _make(family: Any, fields: dict[str, Any], **defaults: Any) -> ModelConfig:
    return ModelConfig(family=family, **(defaults | fields))


def gpt2(**fields: Any) -> ModelConfig:
    """GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, biases, tied head."""
    return _make(
        "gpt2",
        fields,
        position="learned",
        norm="layernorm",
        activation="gelu_tanh",
        gated=False,
        bias="all",
        tied=True,
        dropout=Dropout(embedding=0.1, attention=0.1, hidden=0.1),
    )


def llama(**fields: Any) -> ModelConfig:
    """Llama (Touvron et al. 2023): rotary positions, RMSNorm, SwiGLU, grouped heads, no biases."""
    return _make("llama", fields)


def mistral(**fields: Any) -> ModelConfig:
    """Mistral (Jiang et al. 2023): Llama with a sliding window of 4096 tokens."""
    return _make("mistral", fields, attention=Attention(pattern=("local",), window=4096))


def qwen2(**fields: Any) -> ModelConfig:
    """Qwen 2 (Yang et al. 2024): Llama with biases on queries, keys and values."""
    return _make("qwen2", fields, bias="qkv", norm_epsilon=1e-6, rope=Rope(1e6))


def qwen3(**fields: Any) -> ModelConfig:
    """Qwen 3 (Qwen team 2025): Llama with norms on queries and keys."""
    attention = Attention(qk_norm="head")
    return _make("qwen3", fields, attention=attention, norm_epsilon=1e-6, rope=Rope(1e6))


def qwen3_moe(**fields: Any) -> ModelConfig:
    """Qwen 3 with 128 experts in every layer, 8 for each token (Qwen team 2025)."""
    return _make(
        "qwen3_moe",
        fields,
        attention=Attention(qk_norm="head"),
        experts=Experts(count=128, per_token=8, dim=768),
        norm_epsilon=1e-6,
        rope=Rope(1e6),
    )


def gemma2(**fields: Any) -> ModelConfig:
    """Gemma 2 (Gemma team 2024): alternating local and global layers, capped scores and logits."""
    return _make(
        "gemma2",
        fields,
        embedding=Embedding(scaled=True),
        attention=Attention(pattern=("local", "global"), window=4096, cap=50.0),
        norm="rmsnorm1p",
        norm_order="both",
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        tied=True,
        head=Head(cap=30.0),
    )


def gemma3(**fields: Any) -> ModelConfig:
    """Gemma 3's language model (Gemma team 2025): five local layers per global one, qk-norm."""
    pattern: Any = ("local",) * 5 + ("global",)
    return _make(
        "gemma3_text",
        fields,
        embedding=Embedding(scaled=True),
        attention=Attention(pattern=pattern, window=1024, qk_norm="head"),
        rope=Rope(theta=1e6, local_theta=1e4),
        norm="rmsnorm1p",
        norm_order="both",
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        tied=True,
    )


def olmo2(**fields: Any) -> ModelConfig:
    """OLMo 2 (OLMo team 2024): norms after attention and MLP, and over whole queries and keys."""
    return _make(
        "olmo2",
        fields,
        attention=Attention(qk_norm="width"),
        norm_order="output",
        norm_epsilon=1e-6,
        rope=Rope(5e5),
    )
