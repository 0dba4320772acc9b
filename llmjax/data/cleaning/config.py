"""Settings of cleaning: the steps, their order, and the settings of each."""

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

# FineWeb's steps in FineWeb's order (Penedo et al. 2024, section 3); before the steps that read the
# text, it is repaired and its length is limited.
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
# Steps without settings.
_PLAIN = ("exact_duplicates",)
# Fields that are not steps.
_OTHERS = ("steps", "part_bytes", "evaluation_sets")


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """Everything that determines the output of cleaning.

    Fields that are configs are the settings of the step with that name; `exact_duplicates` is a
    step too.

    Attributes:
        steps: names of steps, in the order in which documents pass them; `standard` stands for
          FineWeb's steps, and no steps leave the text unchanged.
        part_bytes: approximate input that one process cleans at a time, and that is lost if it is
          killed.
        evaluation_sets: files whose examples `decontamination` removes.
        urls: lists of addresses to refuse.
        html: extraction of text from web pages.
        length: limits of a document's length.
        repair: repair of wrongly decoded characters.
        language: the languages to keep.
        gopher_repetition: limits of repetition within a document.
        gopher_quality: Gopher's rules for prose.
        c4_quality: C4's rules for lines and documents. As in FineWeb, without the rule that lines
          end in a mark; but paragraphs stay apart.
        fineweb_quality: FineWeb's rules for lines.
        quality_model: a model that separates good text from bad.
        perplexity: limits of the perplexity under a run's model.
        near_duplicates: when documents are so similar that only the first is kept.
        repeated_passages: when passages are removed because many documents contain them.
        decontamination: when a document counts as containing evaluation data.
        harmful_content: insults and worse.
        personal_data: which personal data to look for, and what to do with it.
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
    c4_quality: C4Quality = C4Quality(terminal_marks=False, paragraphs=True)
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
        known = ["standard", *fields, *_PLAIN]
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
                "step 'decontamination', and only for it."
            )
        if self.part_bytes < 1:
            raise ValueError(f"CleaningConfig.part_bytes is {self.part_bytes}: use 1 or more.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the steps, with `standard` expanded."""
        return tuple(
            name for given in self.steps for name in (STANDARD if given == "standard" else (given,))
        )

    def settings(self, name: str) -> Any:
        """The settings of a step, by name; None if it has none."""
        return getattr(self, name, None)

    def plain(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """What determines the output, as plain values: the steps in order, and their settings.

        Files that settings name are represented by digests: their contents count, not their paths.

        Raises:
            FileNotFoundError, ValueError: a file cannot be read.
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
    """The settings of a step as plain values; settings with files have their own `plain`."""
    own = getattr(settings, "plain", None)
    return own() if own else dataclasses.asdict(settings)
