"""Steps from their settings, in phases: what compares documents has to see all of them first."""

import dataclasses
import functools
import importlib
from collections.abc import Iterable, Sequence
from typing import Any, cast

from llmjax.data.cleaning import decontamination, harm, perplexity, quality_model, urls
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.cleaning.document import Document, Step
from llmjax.data.cleaning.index import Index
from llmjax.data.cleaning.perplexity import Scorer

# Steps that compare documents, and the modules that index these and join indices to a step.
COMPARISONS = {
    "exact_duplicates": "exact",
    "near_duplicates": "minhash",
    "repeated_passages": "passages",
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps that documents pass one after the other, each document by itself.

    Attributes:
        number: from 0.
        steps: their names. Of a phase that is not the first, the first step compares documents, by
            the indices of the phase before.
        compares: the step that the next phase begins with, for which this one makes indices of what
            it keeps; "" in the last.
    """

    number: int
    steps: tuple[str, ...]
    compares: str


def phases(config: CleaningConfig) -> list[Phase]:
    """The steps, cut before each that compares documents."""
    groups: list[list[str]] = [[]]
    for name in config.names:
        if name in COMPARISONS:
            groups.append([])
        groups[-1].append(name)
    following = [group[0] for group in groups[1:]]
    return [
        Phase(number, tuple(group), compares)
        for number, (group, compares) in enumerate(zip(groups, [*following, ""], strict=True))
    ]


def step(config: CleaningConfig, name: str, scorer: Scorer | None = None) -> Step:
    """The step of that name, one that looks at a document alone, after a trial.

    So what it loads is there, and what it says of its settings is said before there is any work.

    Raises:
        ValueError: its settings cannot be used, or it needs a scorer and there is none.
        ImportError: its library is not installed.
    """
    made = _made(config, name, scorer)
    made(Document("<p>A few words to try the step with.</p>"))
    return made


def alone(names: Sequence[str]) -> list[Step]:
    """Steps by name, with their usual settings, after a trial; none if there are no names.

    Raises:
        ValueError: there is no such step, it needs settings, or it compares documents.
        ImportError: a step's library is not installed.
    """
    config = CleaningConfig(steps=tuple(names))
    for name in config.names:
        if name in COMPARISONS:
            raise ValueError(
                f"the step {name!r} compares documents, and here each is looked at alone: leave it "
                "out."
            )
    return [step(config, name) for name in config.names]


def _made(config: CleaningConfig, name: str, scorer: Scorer | None) -> Step:
    """A step by its settings, which most steps are themselves."""
    if name == "perplexity":
        if scorer is None:
            raise ValueError("the step 'perplexity' needs a scorer: give one to `prepare`.")
        return perplexity.step(config.perplexity, scorer)
    if name == "decontamination":
        return _decontamination(config.evaluation_sets, config.decontamination)
    return cast(Step, config.settings(name))


@functools.lru_cache
def _decontamination(sets: tuple[str, ...], settings: decontamination.Decontamination) -> Step:
    return decontamination.step(decontamination.examples(sets), settings)


def forget() -> None:
    """Forgets what steps have read of files that settings name: they may have changed since."""
    for remembered in (urls.load, harm.load, quality_model.load, _decontamination):
        remembered.cache_clear()


def index(config: CleaningConfig, name: str, documents: Iterable[Document]) -> Index:
    """What a step that compares needs to know of some documents, which are read once."""
    return _module(name).index(documents, *_given(config, name))


def joined(
    config: CleaningConfig, name: str, indices: Sequence[Index], documents: Iterable[Document]
) -> Step:
    """The step that compares all documents.

    Args:
        config: its settings.
        name: the step's.
        indices: of all documents.
        documents: these, for a step that looks at some of them again.
    """
    module, given = _module(name), _given(config, name)
    if name == "near_duplicates" and given[0].similarity is not None:
        pairs = module.candidates(indices, *given)
        return module.step(indices, *given, module.candidate_sets(documents, pairs, *given))
    return module.step(indices, *given)


def _module(name: str) -> Any:
    return importlib.import_module(f"llmjax.data.cleaning.{COMPARISONS[name]}")


def _given(config: CleaningConfig, name: str) -> tuple[Any, ...]:
    settings = config.settings(name)
    return () if settings is None else (settings,)
