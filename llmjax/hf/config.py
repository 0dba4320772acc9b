"""Converts Hugging Face's config.json to a `ModelConfig` and back.

A family is a table: the names of its fields here, their defaults when a file omits them, and the
options of which the model supports only one value. Both directions read the same table.
"""

import dataclasses
import operator
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from llmjax import models
from llmjax.hf.families import FAMILIES, REQUIRED, SUFFIXES, Family
from llmjax.hf.families.checks import check
from llmjax.hf.families.special import shortest

Fields = Mapping[str, Any]

LAYERS_LIMIT = 10_000  # config.json is untrusted, and each layer costs memory
LABELS_LIMIT = 1_000_000

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "relu": "relu",
    "tanh": "tanh",
}
_ACTIVATION_NAMES = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}  # the last name wins
# Sizes whose value 0 means "derived from others", and the properties with the resolved sizes.
_RESOLVED = {
    "num_kv_heads": "kv_heads",
    "head_dim": "channels",
    "mlp_dim": "hidden_dim",
    "attention.scale_dim": "scale_dim",
    "embedding.dim": "table_dim",
    "experts.dim": "expert_dim",
}
# Other names of a field in some versions of transformers.
_ALIASES = {"num_experts": "num_local_experts"}
# Null is a value of these fields: no cap, and a key head for each query head.
_NULL_IS_ZERO = ("attention.cap", "head.cap", "num_kv_heads")
# Fields that concern a run, not a checkpoint.
_RUNTIME = ("dtype", "remat", "scan_layers", "dropout")


def config_from_hf(fields: Fields) -> models.ModelConfig:
    """Converts the fields of a config.json to a configuration.

    The head follows from the class in "architectures"; without one it is the family's default.

    Raises:
        ValueError: a family or option is not supported, or a field is missing or invalid.
    """
    family = _family(fields.get("model_type"))
    for name, only in family.fixed.items():
        value = fields.get(name)
        if (only if value is None else value) != only:
            raise ValueError(f"{name}={value!r:.100} is not supported; only {only!r} is")
    ours = {
        ours: _read(fields, name, ours, default) for name, (ours, default) in family.fields.items()
    }
    for special in family.specials:
        ours |= special.read(fields)
    if ours["num_layers"] > LAYERS_LIMIT:
        raise ValueError(f"{ours['num_layers']} layers; the limit is {LAYERS_LIMIT}")
    for name, places in family.dropout.items():
        rate = fields.get(name)
        if rate is not None:
            check(name, rate, float)
            ours |= {f"dropout.{place}": rate for place in places}
    config = family.base(**{name: value for name, value in ours.items() if "." not in name})
    config = _with_head(config, family, fields)
    if config.head.kind != "lm":
        ours.pop("head.cap", None)  # transformers caps only the logits of language models
    return _canonical(_replace(config, ours))


def config_to_hf(config: models.ModelConfig, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Converts a configuration to config.json, as transformers reads it; inverts `config_from_hf`.

    Args:
        config: the model's configuration.
        labels: names of the head's labels; LABEL_0 and so on by default.

    Raises:
        ValueError: the family's config.json cannot express the configuration, or the number of
            labels is not that of the head.
    """
    family = _family(config.family)
    written: dict[str, Any] = {
        "model_type": config.family,
        "architectures": [_architecture(config, family)],
        **family.fixed,
        **{name: _get(config, f"dropout.{places[0]}") for name, places in family.dropout.items()},
    }
    for name, (ours, _) in family.fields.items():
        value: Any = _get(config, _RESOLVED.get(ours, ours))
        value = None if ours in _NULL_IS_ZERO and not value else value
        written[name] = _ACTIVATION_NAMES[value] if ours.endswith("activation") else value
    for special in family.specials:
        written |= special.write(config)
    if config.head.kind in ("classification", "tokens", "reward", "value"):
        names = tuple(labels) or tuple(f"LABEL_{i}" for i in range(_labels(config.head)))
        if len(names) != _labels(config.head):
            raise ValueError(f"{len(names)} labels for a head of {_labels(config.head)}")
        written["id2label"] = {str(i): name for i, name in enumerate(names)}
        written["label2id"] = {name: i for i, name in enumerate(names)}
    again, wanted = config_from_hf(written), _canonical(config)
    lost = [
        f"{field.name}={getattr(wanted, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in _RUNTIME and getattr(wanted, field.name) != getattr(again, field.name)
    ]
    if lost:
        raise ValueError(f"the config.json of {config.family} cannot express {', '.join(lost)}")
    return written


def _family(name: Any) -> Family:
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"model_type={name!r:.100} is not supported; {', '.join(FAMILIES)} are")
    return FAMILIES[name]


def _read(fields: Fields, name: str, ours: str, default: Any) -> Any:
    """Reads the value of one of our fields."""
    value = fields.get(name, fields.get(_ALIASES.get(name, name)))
    if value is None and name in fields and ours in _NULL_IS_ZERO:
        value = 0
    value = default if value is None else value
    if value is REQUIRED:
        raise ValueError(f"{name} is missing")
    value = _activation(value) if ours.endswith("activation") else value
    check(name, value, _kind(ours))
    return value


def _kind(ours: str) -> Any:
    """The declared type of a field, by dotted name."""
    kind: Any = models.ModelConfig
    for part in ours.split("."):
        kind = typing.get_type_hints(kind)[part]
    return kind


def _get(config: models.ModelConfig, ours: str) -> Any:
    return operator.attrgetter(ours)(config)


def _replace(config: models.ModelConfig, values: Fields) -> models.ModelConfig:
    """Replaces nested fields, by dotted name."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        outer, dot, inner = name.partition(".")
        if dot:
            nested.setdefault(outer, {})[inner] = value
    changes = {
        outer: dataclasses.replace(getattr(config, outer), **inner)
        for outer, inner in nested.items()
    }
    return dataclasses.replace(config, **changes)


def _with_head(config: models.ModelConfig, family: Family, fields: Fields) -> models.ModelConfig:
    """Sets the head of the class in "architectures"."""
    named = fields.get("architectures")
    if not named:
        return models.with_head(config, config.head.kind)
    if not (isinstance(named, list) and isinstance(named[0], str)):
        raise ValueError(f"architectures={named!r:.100} must be a list of class names")
    kinds: dict[Any, str] = {
        _class(family, kind): kind for kind in _heads(config) if kind in SUFFIXES
    }
    both = family.classes + family.next_sentence if family.next_sentence else None
    if named[0] == both:
        return models.with_head(config, "mlm", next_sentence=True)
    kind = kinds.get(named[0])
    if kind is None:
        names = ", ".join([*kinds, *([both] if both else [])])
        raise ValueError(f"architectures={named!r:.200} is not supported; {names} are")
    labels = _count_labels(fields)
    if labels == 1 and kind in ("classification", "tokens"):
        kind = {"classification": "reward", "tokens": "value"}[kind]
    if kind in ("classification", "tokens"):
        return models.with_head(config, kind, labels=labels)
    return models.with_head(config, kind)


def _heads(config: models.ModelConfig) -> typing.Collection[str]:
    return models.FAMILIES[config.family].heads


def _class(family: Family, kind: str) -> str:
    return family.classes + family.suffixes.get(kind, SUFFIXES[kind])


def _architecture(config: models.ModelConfig, family: Family) -> str:
    if config.head.next_sentence and family.next_sentence:
        return family.classes + family.next_sentence
    kind = {"reward": "classification", "value": "tokens"}.get(config.head.kind, config.head.kind)
    return _class(family, kind)


def _labels(head: models.Head) -> int:
    return head.labels if head.kind in ("classification", "tokens") else 1


def _count_labels(fields: Fields) -> int:
    """The number of labels as transformers counts it: from id2label, num_labels, or 2."""
    names = fields.get("id2label")
    count = len(names) if isinstance(names, dict) else fields.get("num_labels", 2)
    check("num_labels", count, int)
    if not 1 <= count <= LABELS_LIMIT:
        raise ValueError(f"num_labels={count}: must be in [1, {LABELS_LIMIT}]")
    return count


def _canonical(config: models.ModelConfig) -> models.ModelConfig:
    """The canonical form of a configuration, equal for all configurations of the same model.

    Sizes that can be derived from others become 0, and unused options get their defaults.
    """
    attention, head = config.attention, config.head
    pattern: Any = attention.pattern
    pattern = shortest([pattern[i % len(pattern)] for i in range(config.num_layers)])
    attention = dataclasses.replace(
        attention,
        pattern=pattern,
        window=attention.window if "local" in pattern else 0,
        scale_dim=0 if config.scale_dim == config.channels else attention.scale_dim,
    )
    if head.kind not in ("classification", "tokens"):
        head = dataclasses.replace(head, labels=models.Head().labels)
    rope = config.rope
    if rope.scaling == "none":
        rope = models.Rope(rope.theta, rope.local_theta)
    if rope.scaling == "linear":
        rope = models.Rope(rope.theta, rope.local_theta, "linear", rope.factor)
    same_width = config.table_dim == config.embed_dim
    experts = (
        dataclasses.replace(config.experts, dim=config.expert_dim)
        if config.experts.count
        else models.Experts()
    )
    return dataclasses.replace(
        config,
        num_kv_heads=0 if config.kv_heads == config.num_heads else config.kv_heads,
        head_dim=0 if config.channels * config.num_heads == config.embed_dim else config.channels,
        mlp_dim=0 if config.hidden_dim == 4 * config.embed_dim else config.hidden_dim,
        embedding=dataclasses.replace(config.embedding, dim=0 if same_width else config.table_dim),
        attention=attention,
        head=head,
        rope=rope,
        experts=experts,
    )


def _activation(value: Any) -> str:
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ValueError(f"the activation {value!r:.100} is not supported; {known} are")
    return _ACTIVATIONS[value]
