"""Model families: their names in Hugging Face checkpoints, and configurations.

A family is a table from our parameters to (name there, layout there -> here). Biases and norms
are [D] or [F] on both sides; einops patterns with (h c) join heads and channels.
"""

import dataclasses
import re
from typing import Any

from llmjax import tree
from llmjax.models.config import Dropout, ModelConfig
from llmjax.spec import is_param

Names = dict[str, tuple]

_GPT2_BLOCK = "transformer.h.{}."
_LLAMA_BLOCK = "model.layers.{}."

GPT2: Names = {
    "embedding": ("transformer.wte.weight", "v d -> v d"),
    "positions": ("transformer.wpe.weight", "s d -> s d"),
    "head": ("lm_head.weight", "v d -> v d"),
    "final_norm/scale": ("transformer.ln_f.weight", "d -> d"),
    "final_norm/bias": ("transformer.ln_f.bias", "d -> d"),
    "layers/attention_norm/scale": (_GPT2_BLOCK + "ln_1.weight", "d -> d"),
    "layers/attention_norm/bias": (_GPT2_BLOCK + "ln_1.bias", "d -> d"),
    "layers/attention/query": (_GPT2_BLOCK + "attn.c_attn.weight", "d (h c) -> d h c", (0, 3)),
    "layers/attention/key": (_GPT2_BLOCK + "attn.c_attn.weight", "d (h c) -> d h c", (1, 3)),
    "layers/attention/value": (_GPT2_BLOCK + "attn.c_attn.weight", "d (h c) -> d h c", (2, 3)),
    "layers/attention/query_bias": (_GPT2_BLOCK + "attn.c_attn.bias", "(h c) -> h c", (0, 3)),
    "layers/attention/key_bias": (_GPT2_BLOCK + "attn.c_attn.bias", "(h c) -> h c", (1, 3)),
    "layers/attention/value_bias": (_GPT2_BLOCK + "attn.c_attn.bias", "(h c) -> h c", (2, 3)),
    "layers/attention/out": (_GPT2_BLOCK + "attn.c_proj.weight", "(h c) d -> h c d"),
    "layers/attention/out_bias": (_GPT2_BLOCK + "attn.c_proj.bias", "d -> d"),
    "layers/mlp_norm/scale": (_GPT2_BLOCK + "ln_2.weight", "d -> d"),
    "layers/mlp_norm/bias": (_GPT2_BLOCK + "ln_2.bias", "d -> d"),
    "layers/mlp/up": (_GPT2_BLOCK + "mlp.c_fc.weight", "d f -> d f"),
    "layers/mlp/up_bias": (_GPT2_BLOCK + "mlp.c_fc.bias", "f -> f"),
    "layers/mlp/down": (_GPT2_BLOCK + "mlp.c_proj.weight", "f d -> f d"),
    "layers/mlp/down_bias": (_GPT2_BLOCK + "mlp.c_proj.bias", "d -> d"),
}

LLAMA: Names = {
    "embedding": ("model.embed_tokens.weight", "v d -> v d"),
    "head": ("lm_head.weight", "v d -> v d"),
    "final_norm/scale": ("model.norm.weight", "d -> d"),
    "layers/attention_norm/scale": (_LLAMA_BLOCK + "input_layernorm.weight", "d -> d"),
    "layers/attention/query": (_LLAMA_BLOCK + "self_attn.q_proj.weight", "(h c) d -> d h c"),
    "layers/attention/key": (_LLAMA_BLOCK + "self_attn.k_proj.weight", "(h c) d -> d h c"),
    "layers/attention/value": (_LLAMA_BLOCK + "self_attn.v_proj.weight", "(h c) d -> d h c"),
    "layers/attention/out": (_LLAMA_BLOCK + "self_attn.o_proj.weight", "d (h c) -> h c d"),
    "layers/mlp_norm/scale": (_LLAMA_BLOCK + "post_attention_layernorm.weight", "d -> d"),
    "layers/mlp/gate": (_LLAMA_BLOCK + "mlp.gate_proj.weight", "f d -> d f"),
    "layers/mlp/up": (_LLAMA_BLOCK + "mlp.up_proj.weight", "f d -> d f"),
    "layers/mlp/down": (_LLAMA_BLOCK + "mlp.down_proj.weight", "d f -> f d"),
}

NAMES = {"gpt2": GPT2, "llama": LLAMA}


def name_params(spec: Any, family: str) -> Any:
    """The spec with the family's checkpoint names and layouts filled in.

    A parameter that the family does not have (a bias of a Llama, say) stays nameless: the model
    trains, and export says that it has no place for it.
    """
    names = NAMES[family]

    def one(path, param):
        number = re.match(r"layers/(\d+)/", path)  # of a layer that is not stacked with the others
        path = re.sub(r"^layers/\d+/", "layers/", path)
        if path not in names:
            return param
        hf, layout, *part = names[path]
        hf = hf.format(number[1]) if number else hf
        return dataclasses.replace(param, hf=hf, layout=layout, part=part[0] if part else (0, 1))

    return tree.map_with_path(one, spec, is_leaf=is_param)


def gpt2(
    *, vocab_size: int, num_layers: int, embed_dim: int, num_heads: int, **changes: Any
) -> ModelConfig:
    """GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, biases, tied head."""
    base = ModelConfig(
        family="gpt2",
        vocab_size=vocab_size,
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        position="learned",
        norm="layernorm",
        activation="gelu_tanh",
        gated=False,
        bias=True,
        tied=True,
        dropout=Dropout(embedding=0.1, attention=0.1, hidden=0.1),
    )
    return dataclasses.replace(base, **changes)


def llama(
    *, vocab_size: int, num_layers: int, embed_dim: int, num_heads: int, **changes: Any
) -> ModelConfig:
    """Llama (Touvron et al. 2023): rotary positions, RMSNorm, SwiGLU, grouped heads, no biases."""
    base = ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
    )
    return dataclasses.replace(base, **changes)
