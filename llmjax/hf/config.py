"""config.json of Hugging Face to a `ModelConfig`, and back.

A family is a table: what their fields are called here, what they are where a file leaves them
out, and the options that the model has at one value only. Both directions read the same table.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from llmjax import models

Fields = Mapping[str, Any]

REQUIRED = object()
LAYERS_LIMIT = 10_000  # a config.json is a stranger's word, and each layer costs memory
SIZE_LIMIT = 2**31 - 1

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
}
_ACTIVATION_NAMES = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}  # the last of a kind
# Sizes of which 0 stands for what follows from others, and where the size itself is found.
_RESOLVED = {"num_kv_heads": "kv_heads", "head_dim": "channels", "mlp_dim": "hidden_dim"}
# How a run computes, which is no part of a checkpoint.
_RUNTIME = ("dtype", "remat", "scan_layers", "dropout")


@dataclasses.dataclass(frozen=True)
class _Family:
    """How a family's config.json is read and written.

    Attributes:
        architecture: the class with a language-model head in transformers.
        base: makes the configuration.
        fields: their name → (our field, the value where theirs is left out or null).
        dropout: their name → place in `Dropout`.
        fixed: their name → the only value that the model implements, also their default.
    """

    architecture: str
    base: Callable[..., models.ModelConfig]
    fields: Mapping[str, tuple[str, Any]]
    dropout: Mapping[str, str]
    fixed: Mapping[str, Any]


_FAMILIES = {
    "gpt2": _Family(
        architecture="GPT2LMHeadModel",
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
        dropout={"embd_pdrop": "embedding", "attn_pdrop": "attention", "resid_pdrop": "hidden"},
        fixed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
    "llama": _Family(
        architecture="LlamaForCausalLM",
        base=models.llama,
        fields={
            "vocab_size": ("vocab_size", REQUIRED),
            "num_hidden_layers": ("num_layers", REQUIRED),
            "hidden_size": ("embed_dim", REQUIRED),
            "num_attention_heads": ("num_heads", REQUIRED),
            "num_key_value_heads": ("num_kv_heads", 0),
            "head_dim": ("head_dim", 0),
            "intermediate_size": ("mlp_dim", REQUIRED),
            "max_position_embeddings": ("max_length", 2048),
            "rope_theta": ("rope_theta", 10000.0),
            "rms_norm_eps": ("norm_epsilon", 1e-6),
            "hidden_act": ("activation", "silu"),
            "initializer_range": ("init_std", 0.02),
            "tie_word_embeddings": ("tied", False),
        },
        dropout={"attention_dropout": "attention"},
        fixed={"attention_bias": False, "mlp_bias": False},
    ),
}


def config_from_hf(fields: Fields) -> models.ModelConfig:
    """The configuration that a config.json describes.

    Raises:
        ValueError: a family or option that is not supported, or a field that is missing or has a
            value that cannot be.
    """
    family = _family(fields.get("model_type"))
    fields = _plain_rope(fields)
    for name, value in family.fixed.items():
        if fields.get(name, value) != value:
            raise ValueError(f"{name}={fields[name]!r:.100} is not supported; only {value!r} is")
    kinds = typing.get_type_hints(models.ModelConfig)
    ours: dict[str, Any] = {}
    for name, (field, default) in family.fields.items():
        value = fields.get(name)
        value = default if value is None else value
        if value is REQUIRED:
            raise ValueError(f"{name} is missing")
        ours[field] = _activation(value) if field == "activation" else value
        _check(name, ours[field], kinds[field])
    if ours["num_layers"] > LAYERS_LIMIT:
        raise ValueError(f"{ours['num_layers']} layers; more than {LAYERS_LIMIT} are not believed")
    rates = {place: fields.get(name, 0.0) for name, place in family.dropout.items()}
    for place, rate in rates.items():
        _check(f"dropout of {place}", rate, float)
    return _canonical(family.base(**ours, dropout=models.Dropout(**rates)))


def config_to_hf(config: models.ModelConfig) -> dict[str, Any]:
    """config.json of a configuration, as transformers reads it; inverts `config_from_hf`.

    Raises:
        ValueError: the configuration has what the family's config.json cannot say.
    """
    family = _family(config.family)
    written: dict[str, Any] = {
        "model_type": config.family,
        "architectures": [family.architecture],
        **family.fixed,
        **{name: getattr(config.dropout, place) for name, place in family.dropout.items()},
    }
    for name, (field, _) in family.fields.items():
        value = getattr(config, _RESOLVED.get(field, field))
        written[name] = _ACTIVATION_NAMES[value] if field == "activation" else value
    if "rope_theta" in written:
        # Where transformers 5 looks; versions before it read the top level.
        theta = written["rope_theta"]
        written["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    again, wanted = config_from_hf(written), _canonical(config)
    lost = [
        f"{field.name}={getattr(wanted, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in _RUNTIME and getattr(wanted, field.name) != getattr(again, field.name)
    ]
    if lost:
        raise ValueError(f"checkpoints of the family {config.family} cannot say {', '.join(lost)}")
    return written


def _family(name: Any) -> _Family:
    if not isinstance(name, str) or name not in _FAMILIES:
        raise ValueError(f"model_type={name!r:.100} is not supported; {', '.join(_FAMILIES)} are")
    return _FAMILIES[name]


def _canonical(config: models.ModelConfig) -> models.ModelConfig:
    """The same model, with 0 for sizes that are what follows from others."""
    return dataclasses.replace(
        config,
        num_kv_heads=0 if config.kv_heads == config.num_heads else config.kv_heads,
        head_dim=0 if config.channels * config.num_heads == config.embed_dim else config.channels,
        mlp_dim=0 if config.hidden_dim == 4 * config.embed_dim else config.hidden_dim,
    )


def _plain_rope(fields: Fields) -> Fields:
    """The fields with rope_theta at the top level, wherever the version that wrote them put it."""
    plain = dict(fields)
    for name in ("rope_parameters", "rope_scaling"):
        rope = plain.pop(name, None)
        if rope is None:
            continue
        kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else rope
        if kind != "default":
            raise ValueError(f"{name}={rope!r:.200} is not supported; only plain rotation is")
        plain["rope_theta"] = rope.get("rope_theta", plain.get("rope_theta"))
    return plain


def _activation(value: Any) -> str:
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ValueError(f"the activation {value!r:.100} is not supported; {known} are")
    return _ACTIVATIONS[value]


def _check(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError unless the value is of that type and of a size that can be."""
    if kind is bool and type(value) is not bool:
        raise ValueError(f"{name}={value!r:.100} must be true or false")
    if kind is int and not (type(value) is int and 0 <= value <= SIZE_LIMIT):
        raise ValueError(f"{name}={value!r:.100} must be an integer in [0, {SIZE_LIMIT}]")
    if kind is float and not (type(value) in (int, float) and math.isfinite(value)):
        raise ValueError(f"{name}={value!r:.100} must be a finite number")
