"""The table that describes a family's config.json."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from llmjax import models
from llmjax.hf.families.special import Special

REQUIRED = object()

# Kind of head → suffix of the class name in transformers.
SUFFIXES = {
    "none": "Model",
    "lm": "ForCausalLM",
    "mlm": "ForMaskedLM",
    "rtd": "ForPreTraining",
    "classification": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family's config.json is read and written.

    Attributes:
        classes: prefix of its class names in transformers.
        base: makes the configuration, with the default head.
        fields: their name → (our dotted name, the default if it is omitted).
        dropout: their name → fields of `Dropout`. The first is the one written; later names take
            precedence. If a name is omitted or null, its fields keep the value of `base` or of an
            earlier name.
        fixed: their name → the only supported value, which is also the default.
        specials: conversions that do not map to a single field.
        suffixes: kind of head → suffix of the class name, where it differs from `SUFFIXES`.
        next_sentence: suffix of the class that has `Head.next_sentence`.
    """

    classes: str
    base: Callable[..., models.ModelConfig]
    fields: Mapping[str, tuple[str, Any]]
    dropout: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, Any]
    specials: tuple[Special, ...] = ()
    suffixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    next_sentence: str = ""
