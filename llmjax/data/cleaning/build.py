"""Builds steps from their settings, in phases: steps that compare documents need all of them."""

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

# Steps that compare documents, and the modules that build their indices and steps.
COMPARISONS = {
    "exact_duplicates": "exact",
    "near_duplicates": "minhash",
    "repeated_passages": "passages",
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps that documents pass in sequence, each document independently.

    Attributes:
        number: index of the phase, from 0.
        steps: their names. In every phase but the first, the first step compares documents, using
            the indices of the previous phase.
        compares: the first step of the next phase, for which this phase indexes the documents it
            keeps; "" in the last phase.
    """

    number: int
    steps: tuple[str, ...]
    compares: str


def phases(config: CleaningConfig) -> list[Phase]:
    """The steps, split before each step that compares documents."""
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
    """Builds and tries out a step that looks at each document alone.

    The trial loads what the step needs and reports invalid settings before any work is done.

    Raises:
        ValueError: its settings are invalid, or it needs a scorer and none is given.
        ImportError: its library is not installed.
    """
    made = _made(config, name, scorer)
    made(Document("<p>A few words to try the step with.</p>"))
    return made


def alone(names: Sequence[str]) -> list[Step]:
    """Builds and tries out steps by name, with default settings.

    Raises:
        ValueError: a step is unknown, needs settings, or compares documents.
        ImportError: a step's library is not installed.
    """
    config = CleaningConfig(steps=tuple(names))
    for name in config.names:
        if name in COMPARISONS:
            raise ValueError(
                f"the step {name!r} compares documents, which cannot be done here: leave it out."
            )
    return [step(config, name) for name in config.names]


def _made(config: CleaningConfig, name: str, scorer: Scorer | None) -> Step:
    """Builds a step; most settings are the step itself."""
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
    """Clears the caches of files that settings name, since the files may have changed."""
    for remembered in (urls.load, harm.load, quality_model.load, _decontamination):
        remembered.cache_clear()


def index(config: CleaningConfig, name: str, documents: Iterable[Document]) -> Index:
    """Builds the index of some documents for a step that compares; reads them once."""
    return _module(name).index(documents, *_given(config, name))


def joined(
    config: CleaningConfig, name: str, indices: Sequence[Index], documents: Iterable[Document]
) -> Step:
    """Builds the step that compares all documents.

    Args:
        config: settings of the step.
        name: the step's name.
        indices: indices of all documents.
        documents: all documents, for a step that reads some of them again.
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
