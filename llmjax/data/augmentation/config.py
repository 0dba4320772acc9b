"""Settings of augmentation: the methods, the number of copies, and the checks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmjax.data.augmentation.control import (
    Check,
    Classify,
    LabelAgreement,
    LengthRatio,
    Similarity,
)
from llmjax.data.augmentation.encoders import Embedder
from llmjax.data.augmentation.method import Method
from llmjax.data.augmentation.noise import Noise
from llmjax.data.augmentation.restructuring import Restructuring
from llmjax.data.augmentation.synonyms import SynonymReplacement
from llmjax.data.augmentation.translation import Apertium, BackTranslation


@dataclasses.dataclass(frozen=True)
class TranslationConfig:
    """Back-translation by Apertium.

    Attributes:
        rate: share of sentences to translate.
        there: language pair of the forward translation.
        back: language pair of the back-translation.
        program: name or path of Apertium.
    """

    rate: float = 1.0
    there: str = "eng-spa"
    back: str = "spa-eng"
    program: str = "apertium"


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """Which augmented texts are kept.

    Attributes:
        shortest: minimum number of words per word of the original.
        longest: maximum number.
        embedder: folder of a BERT trained for embeddings; "" skips the comparison.
        similarity: minimum cosine similarity of the two embeddings.
    """

    shortest: float = 0.5
    longest: float = 2.0
    embedder: str = ""
    similarity: float = 0.8


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Everything that determines the augmented texts.

    Attributes:
        methods: methods in order: synonyms, back_translation, restructuring, noise.
        copies: number of copies of each example by each method.
        seed: random seed of all choices.
        synonyms: replaces words by synonyms.
        back_translation: translates into another language and back.
        restructuring: reorders clauses and pairs, and changes the voice.
        noise: misspells words.
        control: decides which texts are kept.
    """

    methods: tuple[str, ...] = ("synonyms", "restructuring", "noise")
    copies: int = 1
    seed: int = 0
    synonyms: SynonymReplacement = SynonymReplacement()
    back_translation: TranslationConfig = TranslationConfig()
    restructuring: Restructuring = Restructuring()
    noise: Noise = Noise()
    control: ControlConfig = ControlConfig()

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in _MAKERS]
        if unknown or not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods={self.methods}: use some of {', '.join(_MAKERS)}, each once")
        if self.copies < 1 or self.seed < 0:
            raise ValueError(
                f"copies={self.copies} with seed={self.seed}: use 1 or more, and 0 or more"
            )

    def make_methods(self) -> list[Method]:
        """The methods, in order."""
        return [_MAKERS[name](self) for name in self.methods]

    def make_checks(
        self, classify: Classify | None = None, labels: Sequence[str] = ()
    ) -> list[Check]:
        """The checks, cheapest first, with label agreement if there is a classifier.

        Args:
            classify: texts to labels, or None.
            labels: names by number, for examples whose label is a number.
        """
        control = self.control
        checks: list[Any] = [LengthRatio(control.shortest, control.longest)]
        if control.embedder:
            checks.append(Similarity(Embedder(control.embedder), control.similarity))
        if classify is not None:
            checks.append(LabelAgreement(classify, labels))
        return checks


def _back_translation(settings: AugmentationConfig) -> BackTranslation:
    chosen = settings.back_translation
    return BackTranslation(
        chosen.rate,
        Apertium(chosen.there, chosen.program),
        Apertium(chosen.back, chosen.program),
    )


_MAKERS: Mapping[str, Callable[[AugmentationConfig], Method]] = {
    "synonyms": lambda settings: settings.synonyms,
    "back_translation": _back_translation,
    "restructuring": lambda settings: settings.restructuring,
    "noise": lambda settings: settings.noise,
}
