"""Model families: configurations, heads, and names in Hugging Face checkpoints."""

import dataclasses
from typing import Any

from llmjax.models.config import ModelConfig
from llmjax.models.families import decoders, encoders, names
from llmjax.models.families.decoders import (
    gemma2,
    gemma3,
    gpt2,
    llama,
    mistral,
    olmo2,
    qwen2,
    qwen3,
    qwen3_moe,
)
from llmjax.models.families.encoders import bert, deberta, electra, modernbert, roberta

__all__ = [
    "FAMILIES",
    "bert",
    "deberta",
    "electra",
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "mistral",
    "modernbert",
    "name_params",
    "olmo2",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "roberta",
    "with_head",
]

FAMILIES = decoders.FAMILIES | encoders.FAMILIES


def name_params(spec: Any, config: ModelConfig) -> Any:
    """The spec with the family's checkpoint names and layouts filled in."""
    return names.name_params(spec, config, FAMILIES[config.family])


def with_head(config: ModelConfig, kind: str, **changes: Any) -> ModelConfig:
    """The model with another head, in the form that its family's checkpoints use.

    If the model already has a head of this kind, only the changes apply.

    Args:
        config: model configuration.
        kind: a kind of `Head`.
        **changes: fields of the head to set, such as labels.

    Raises:
        ValueError: the family has no such head.
    """
    family = FAMILIES[config.family]
    if kind not in family.heads:
        raise ValueError(f"{config.family} has no head {kind!r}; it has {', '.join(family.heads)}")
    if kind in family.one_activation:
        changes = {"activation": config.activation} | changes
    same = kind == config.head.kind
    head = config.head if same else family.heads[kind][0]
    return dataclasses.replace(config, head=dataclasses.replace(head, **changes))
