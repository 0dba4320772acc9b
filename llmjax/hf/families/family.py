"""What a family's table consists of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from llmjax import models
from llmjax.hf.families.special import Special

REQUIRED = object()

# Our kind of head → the end of a class name in transformers.
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
        classes: what the names of its classes in transformers start with.
        base: makes the configuration, with the head that a config.json has by default.
        fields: their name → (the dotted name of ours, the value where theirs is left out).
        dropout: their name → places in `Dropout`, of which the first is written; later names
            take precedence. Where theirs is left out or null the place is as `base` or an earlier
            name has it.
        fixed: their name → the only value that the model implements, also their default.
        specials: what does not stand for one field of ours.
        suffixes: kind of head → the end of a class name, where it is not that of `SUFFIXES`.
        next_sentence: the end of the name of the class that has `Head.next_sentence`.
    """

    classes: str
    base: Callable[..., models.ModelConfig]
    fields: Mapping[str, tuple[str, Any]]
    dropout: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, Any]
    specials: tuple[Special, ...] = ()
    suffixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    next_sentence: str = ""
