"""Which steps clean text, in which order, and the settings of each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from llmjax.checks import nearest
from llmjax.data.cleaning import contents, decontamination
from llmjax.data.cleaning.c4 import C4Quality
from llmjax.data.cleaning.decontamination import Decontamination
from llmjax.data.cleaning.fineweb import FineWebQuality
from llmjax.data.cleaning.gopher import GopherQuality, GopherRepetition
from llmjax.data.cleaning.harm import HarmfulContent
from llmjax.data.cleaning.html import Html
from llmjax.data.cleaning.language import Language
from llmjax.data.cleaning.length import Length
from llmjax.data.cleaning.minhash import MinHash
from llmjax.data.cleaning.passages import Passages
from llmjax.data.cleaning.perplexity import Perplexity
from llmjax.data.cleaning.personal import PersonalData
from llmjax.data.cleaning.quality_model import QualityModel
from llmjax.data.cleaning.repair import Repair
from llmjax.data.cleaning.urls import Urls

# FineWeb's steps in FineWeb's order (Penedo et al. 2024, section 3); before those that read the
# text, it is repaired and its length is bounded.
STANDARD = (
    "urls",
    "html",
    "length",
    "repair",
    "language",
    "gopher_repetition",
    "gopher_quality",
    "c4_quality",
    "fineweb_quality",
    "near_duplicates",
    "personal_data",
)
# Steps that have nothing to set.
_PLAIN = ("exact_duplicates",)
# Fields that are no steps.
_OTHERS = ("steps", "part_bytes", "evaluation_sets")


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """Everything that decides what cleaning makes of a text.

    Fields that are configs themselves are the settings of steps, under their names;
    `exact_duplicates` is a step, too.

    Attributes:
        steps: names of steps, in the order in which documents pass them; `standard` stands for
          those of FineWeb, and none leaves text as it is.
        part_bytes: about how much input is cleaned at a time by one process, and lost when it is
          killed.
        evaluation_sets: files whose examples `decontamination` keeps out.
        urls: addresses that documents are not taken from.
        html: how text is taken out of pages.
        length: bounds of a document's length.
        repair: of characters that were decoded wrongly.
        language: which languages are wanted.
        gopher_repetition: how often a document may repeat itself.
        gopher_quality: what Gopher's authors take for prose.
        c4_quality: lines and documents that are no natural language, by the rules of C4. Here, as
          for FineWeb, without the rule that lines end in a mark.
        fineweb_quality: how lines may look.
        quality_model: a model that tells good text from bad.
        perplexity: how strange a text may be to a run's model.
        near_duplicates: which documents are so much alike that the first stands for all.
        repeated_passages: which passages are taken out because many documents have them.
        decontamination: when a document is taken for one of an evaluation set.
        harmful_content: insults and worse.
        personal_data: what could be somebody's, and what becomes of it.
    """

    steps: tuple[str, ...] = ()
    part_bytes: int = 1 << 26
    evaluation_sets: tuple[str, ...] = ()
    urls: Urls = Urls()
    html: Html = Html()
    length: Length = Length()
    repair: Repair = Repair()
    language: Language = Language()
    gopher_repetition: GopherRepetition = GopherRepetition()
    gopher_quality: GopherQuality = GopherQuality()
    c4_quality: C4Quality = C4Quality(terminal_marks=False)
    fineweb_quality: FineWebQuality = FineWebQuality()
    quality_model: QualityModel = QualityModel()
    perplexity: Perplexity = Perplexity()
    near_duplicates: MinHash = MinHash()
    repeated_passages: Passages = Passages()
    decontamination: Decontamination = Decontamination()
    harmful_content: HarmfulContent = HarmfulContent()
    personal_data: PersonalData = PersonalData()

    def __post_init__(self) -> None:
        fields = [field.name for field in dataclasses.fields(self) if field.name not in _OTHERS]
        known = [*fields, *_PLAIN]
        for name in self.names:
            if name not in known:
                near = nearest(name, known)
                raise ValueError(
                    f"CleaningConfig.steps has {name!r}: use {' or '.join(map(repr, near))}."
                    if near
                    else f"CleaningConfig.steps has {name!r}: use some of {', '.join(known)}."
                )
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"CleaningConfig.steps has a step twice: {', '.join(self.names)}.")
        if ("decontamination" in self.names) != bool(self.evaluation_sets):
            raise ValueError(
                f"CleaningConfig.evaluation_sets is {self.evaluation_sets}: name files for the "
                "step 'decontamination', and for it only."
            )
        if self.part_bytes < 1:
            raise ValueError(f"CleaningConfig.part_bytes is {self.part_bytes}: use 1 or more.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the steps, with those that `standard` stands for."""
        return tuple(
            name for given in self.steps for name in (STANDARD if given == "standard" else (given,))
        )

    def settings(self, name: str) -> Any:
        """The settings of the step of that name; None if it has none."""
        return getattr(self, name, None)

    def plain(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """What decides the outcome, as plain values: the steps in order, and their settings.

        Of files that settings name, these have digests: what a file holds counts, not its place.

        Raises:
            FileNotFoundError, ValueError: one cannot be read.
        """
        names = self.names if names is None else names
        found = {name: self.settings(name) for name in names}
        settings = {name: _plain(held) for name, held in found.items() if held}
        sets = {}
        if "decontamination" in names:
            files = decontamination.find(self.evaluation_sets)
            sets = {"evaluation_sets": [(f.name, contents.digest(f.path)) for f in files]}
        return {"steps": list(names), **sets, **settings}


def _plain(settings: Any) -> dict[str, Any]:
    """Settings of a step; those that name files say themselves how these count."""
    own = getattr(settings, "plain", None)
    return own() if own else dataclasses.asdict(settings)
