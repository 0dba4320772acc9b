"""Conversions of config.json fields that do not map to a single field of `ModelConfig`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmjax import models
from llmjax.hf.families.checks import check

Fields = Mapping[str, Any]
Values = dict[str, Any]  # dotted name of a field of ModelConfig → value

_KINDS = {"full_attention": "global", "sliding_attention": "local"}
_NAMES = {ours: theirs for theirs, ours in _KINDS.items()}


@dataclasses.dataclass(frozen=True)
class Special:
    """A conversion of some fields in both directions.

    Attributes:
        read: their fields → values of ours; raises ValueError for unsupported values.
        write: our configuration → their fields.
    """

    read: Callable[[Fields], Values]
    write: Callable[[models.ModelConfig], dict[str, Any]]


def rope(theta: float, local_theta: float = 0.0) -> Special:
    """Rotary positions, in the fields of any version of transformers.

    Args:
        theta: the default.
        local_theta: the default of families whose local layers have their own; 0 for others.
    """

    def read(fields: Fields) -> Values:
        shared, local = _rope_parameters(fields, theta, local_theta)
        values = _read_rope(shared)
        if local_theta:
            values["rope.local_theta"] = local.get("rope_theta", local_theta)
            check("rope_theta of local layers", values["rope.local_theta"], float)
            if _rope_kind(local) != "default":
                raise ValueError(f"rope_parameters={local!r:.200}: local layers cannot be scaled")
        return values

    def write(config: models.ModelConfig) -> dict[str, Any]:
        parameters = _write_rope(config.rope)
        if not local_theta:
            # transformers before version 5 reads the top level.
            old: dict[str, Any] = {"rope_theta": config.rope.theta}
            if config.rope.scaling != "none":
                scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
                old["rope_scaling"] = scaling
            return old | {"rope_parameters": parameters}
        local = config.rope.local_theta or config.rope.theta
        return {
            "rope_parameters": {
                "full_attention": parameters,
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            }
        }

    return Special(read, write)


def _rope_parameters(fields: Fields, theta: float, local_theta: float) -> tuple[Fields, Fields]:
    """The parameters of global and of local layers."""
    old = fields.get("rope_scaling") or {}
    new = fields.get("rope_parameters") or {}
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
        if not isinstance(value, dict):
            raise ValueError(f"{name}={value!r:.200} is not supported; it must be an object")
    first = fields.get("rope_theta", fields.get("global_rope_theta"))
    shared = {"rope_theta": theta if first is None else first} | old
    second = fields.get("rope_local_base_freq", fields.get("local_rope_theta"))
    local = {"rope_theta": local_theta if second is None else second}
    if set(new) & set(_KINDS):
        parts = [new.get(name) or {} for name in _KINDS]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"rope_parameters={new!r:.200} is not supported")
        return shared | parts[0], local | parts[1]
    return shared | new, local


def _rope_kind(parameters: Fields) -> Any:
    return parameters.get("rope_type", parameters.get("type", "default"))


_ROPE_FIELDS = {
    "rope_theta": "theta",
    "factor": "factor",
    "low_freq_factor": "low_frequency",
    "high_freq_factor": "high_frequency",
    "original_max_position_embeddings": "original_length",
}
_ROPE_USED = {
    "default": ("rope_theta",),
    "linear": ("rope_theta", "factor"),
    "llama3": tuple(_ROPE_FIELDS),
}


def _read_rope(parameters: Fields) -> Values:
    kind = _rope_kind(parameters)
    if not isinstance(kind, str) or kind not in _ROPE_USED:
        known = ", ".join(_ROPE_USED)
        raise ValueError(f"rope_type={kind!r:.100} is not supported; {known} are")
    values: Values = {"rope.scaling": "none" if kind == "default" else kind}
    for name in _ROPE_USED[kind]:
        if parameters.get(name) is None:
            raise ValueError(f"{name} of a {kind} rotation is missing")
        whole = name == "original_max_position_embeddings"
        check(f"{name} of the rotation", parameters[name], int if whole else float)
        values[f"rope.{_ROPE_FIELDS[name]}"] = parameters[name]
    return values


def _write_rope(rope: models.Rope) -> dict[str, Any]:
    kind = "default" if rope.scaling == "none" else rope.scaling
    used = {name: getattr(rope, _ROPE_FIELDS[name]) for name in _ROPE_USED[kind]}
    return {"rope_type": kind, **used}


def layer_kinds(
    default: Callable[[Fields, int], Sequence[str]],
    window: tuple[str, int],
    *,
    switch: str = "",
    half: bool = False,
) -> Special:
    """Which layers are local, and their window.

    Args:
        default: (fields, layers) → each layer's kind in their terms, if a file lists none.
        window: name and default of the window's field.
        switch: a field that must be true for local layers, if the family has one.
        half: whether the window counts both sides of a token together.
    """
    name, size = window

    def read(fields: Fields) -> Values:
        count: Any = fields.get("num_hidden_layers")
        check("num_hidden_layers", count, int)
        kinds = fields.get("layer_types") or default(fields, count)
        if not isinstance(kinds, list | tuple) or any(str(kind) not in _KINDS for kind in kinds):
            raise ValueError(f"layer_types={kinds!r:.200}: {' and '.join(_KINDS)} are supported")
        if len(kinds) != count:
            raise ValueError(f"layer_types has {len(kinds)} entries for {count} layers")
        pattern = shortest([_KINDS[kind] for kind in kinds])
        if "local" not in pattern:
            return {"attention.pattern": pattern, "attention.window": 0}
        width = fields[name] if fields.get(name) is not None else size
        check(name, width, int)
        width = width // 2 + 1 if half else width
        return {"attention.pattern": pattern, "attention.window": width}

    def write(config: models.ModelConfig) -> dict[str, Any]:
        pattern, width = config.attention.pattern, config.attention.window
        kinds = [_NAMES[pattern[i % len(pattern)]] for i in range(config.num_layers)]
        written: dict[str, Any] = {"layer_types": kinds}
        local = "local" in pattern
        if switch:
            # transformers counts the global layers, from the first one on.
            written |= {switch: local, "max_window_layers": config.num_layers}
        if local:
            written[name] = 2 * (width - 1) if half else width
        return written

    return Special(read, write)


def sliding_window() -> Special:
    """Mistral: either all layers are local or none."""

    def read(fields: Fields) -> Values:
        window = fields.get("sliding_window", 4096)
        if window is None:
            return {"attention.pattern": ("global",), "attention.window": 0}
        check("sliding_window", window, int)
        return {"attention.pattern": ("local",), "attention.window": window}

    def write(config: models.ModelConfig) -> dict[str, Any]:
        local = config.attention.pattern == ("local",)
        return {"sliding_window": config.attention.window if local else None}

    return Special(read, write)


def shortest(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest pattern that gives these kinds when repeated."""
    for length in range(1, len(kinds) + 1):
        if all(kind == kinds[index % length] for index, kind in enumerate(kinds)):
            return tuple(kinds[:length])
    return ("global",)


def padded_positions() -> Special:
    """RoBERTa: positions start after the padding token's row of the table."""

    def read(fields: Fields) -> Values:
        padding = fields.get("pad_token_id", 1)
        rows = fields.get("max_position_embeddings", 512)
        check("pad_token_id", padding, int)
        check("max_position_embeddings", rows, int)
        offset = padding + 1
        return {"max_length": rows - offset, "embedding.offset": offset}

    def write(config: models.ModelConfig) -> dict[str, Any]:
        offset = config.embedding.offset
        return {
            "max_position_embeddings": config.max_length + offset,
            "pad_token_id": offset - 1,
        }

    return Special(read, write)


def padding(default: int) -> Special:
    """The padding token's id, which transformers defaults to `default` and validates.

    Our configuration has none, since it belongs to the tokenizer. With a smaller vocabulary the
    file must say null.
    """
    return Special(
        lambda fields: {},
        lambda config: {"pad_token_id": None} if config.vocab_size <= default else {},
    )


def pooling() -> Special:
    """ModernBERT: pooling of a sequence, and the activation of the head's dense layer."""
    places = {"cls": "first", "mean": "mean"}

    def read(fields: Fields) -> Values:
        place = fields.get("classifier_pooling", "cls")
        if not isinstance(place, str) or place not in places:
            raise ValueError(f"classifier_pooling={place!r:.100} must be cls or mean")
        activation = fields.get("classifier_activation", "gelu")
        if activation != "gelu":
            raise ValueError(f"classifier_activation={activation!r:.100} is not supported")
        return {"head.pool": places[place]} if _is_pooled(fields) else {}

    def write(config: models.ModelConfig) -> dict[str, Any]:
        return {"classifier_pooling": "mean" if config.head.pool == "mean" else "cls"}

    return Special(read, write)


def _is_pooled(fields: Fields) -> bool:
    named = fields.get("architectures")
    return bool(named) and "Classification" in str(named)


def relative_positions() -> Special:
    """DeBERTa: disentangled attention with relative positions."""

    def read(fields: Fields) -> Values:
        check("relative_attention", fields.get("relative_attention", False), bool)
        if not fields.get("relative_attention", False):
            raise ValueError("relative_attention=False is not supported; only True is")
        terms = fields.get("pos_att_type") or []
        if isinstance(terms, str):
            terms = [term.strip() for term in terms.lower().split("|") if term.strip()]
        if not isinstance(terms, list) or set(map(str, terms)) - {"c2p", "p2c"}:
            raise ValueError(f"pos_att_type={terms!r:.100}: c2p and p2c are supported")
        if not terms:
            raise ValueError("pos_att_type is empty: c2p, p2c or both are supported")
        distance = fields.get("max_relative_positions", -1)
        if type(distance) is int and distance < 1:
            distance = fields.get("max_position_embeddings", 512)
        check("max_relative_positions", distance, int)
        buckets = fields.get("position_buckets", -1)
        buckets = 0 if type(buckets) is int and buckets < 1 else buckets
        check("position_buckets", buckets, int)
        norm = fields.get("norm_rel_ebd", "none")
        if norm not in ("none", "layer_norm"):
            raise ValueError(
                f"norm_rel_ebd={norm!r:.100} is not supported; layer_norm and none are"
            )
        biased = fields.get("position_biased_input", True)
        check("position_biased_input", biased, bool)
        convolution = fields.get("conv_kernel_size", 0)
        check("conv_kernel_size", convolution, int)
        return {
            "scan_layers": not convolution,  # a convolution makes the first layer differ
            "disentangled.convolution": convolution,
            "disentangled.terms": tuple(sorted(terms)),
            "disentangled.max_distance": distance,
            "disentangled.buckets": buckets,
            "disentangled.norm": norm == "layer_norm",
            "position": "learned" if biased else "none",
        }

    def write(config: models.ModelConfig) -> dict[str, Any]:
        parts = config.disentangled
        return {
            "relative_attention": True,
            "conv_kernel_size": parts.convolution,
            "pos_att_type": list(parts.terms),
            "max_relative_positions": parts.max_distance,
            "position_buckets": parts.buckets or -1,
            "norm_rel_ebd": "layer_norm" if parts.norm else "none",
            "position_biased_input": config.position == "learned",
        }

    return Special(read, write)
