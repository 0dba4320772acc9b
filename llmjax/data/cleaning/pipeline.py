"""Cleans sources part by part and phase by phase, accounting for every document.

The resulting folder holds:

    cleaned/SOURCE/00000.jsonl.zst    documents, with `text`, `id` and `metadata`
    cleaned/SOURCE/00000.json         the counts of the part's documents
    cleaned/counts.json               the counts of each source
    rejected/SOURCE/00000.jsonl.zst   rejected documents, also with `step`, `reason` and `score`

A part is done when its counts exist with the fingerprint of everything that determines them. No
engine cleans it again, so a killed run resumes and a repeated one changes nothing.
"""

import contextlib
import dataclasses
import itertools
import json
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmjax.data import config, documents, rejects
from llmjax.data.cleaning import build, index, perplexity, progress, stored
from llmjax.data.cleaning.counts import Counts
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.engines import Engine, Local, Run
from llmjax.data.cleaning.parts import Part, cut
from llmjax.data.cleaning.perplexity import Scorer
from llmjax.data.cleaning.task import CLEANED_FOLDER, REJECTED_FOLDER, STEP_FILE, Task

COUNTS_FILE = "counts.json"
# Where all phases but the last write, until the run is done.
_PHASES_FOLDER = "phases"
_LOGS_FOLDER = "logs"
_PART_FILE = re.compile(r"\d{5,}(?:\.running)?\.json(?:l\.zst)?")
_FOLDERS = (CLEANED_FOLDER, REJECTED_FOLDER, _PHASES_FOLDER)


def clean_sources(
    settings: config.DataConfig,
    inputs: Mapping[str, Sequence[documents.File]],
    directory: Path,
    engine: Engine | None = None,
    scorer: Scorer | None = None,
) -> dict[str, Counts]:
    """Passes the documents of all sources through the config's steps, unless that is done.

    Args:
        settings: sources and steps.
        inputs: the files of each source.
        directory: folder of the cleaned documents, see the module docstring.
        engine: where to run; None for this process.
        scorer: computes perplexities of texts, if there is such a step.

    Returns:
        The counts of each source.

    Raises:
        ValueError: too much of a source is malformed.
        RuntimeError: parts were not finished.
        ImportError: a step's library is not installed.
    """
    build.forget()
    parts = cut(settings, inputs)
    phases = _phases(settings, parts, directory, scorer)
    _remove_unfinished(directory)
    if any(task.counts() is None for task in phases[-1]):
        for name in settings.cleaning.names:
            if name not in build.COMPARISONS:
                build.step(settings.cleaning, name, scorer)
        logs = directory / _LOGS_FOLDER
        with (engine or Local()).start(logs) as run, progress.Display() as display:
            for tasks, following in zip(phases, [*phases[1:], []], strict=True):
                _run(tasks, run, logs, display)
                if following:
                    _check_damage(tasks, settings)
                    _compare(tasks, following[0])
    _check_damage(phases[-1], settings)  # also of what an earlier run refused
    _remove_others(phases[-1], directory)
    counts = _totals(phases[-1])
    record = {source: found.plain() for source, found in counts.items()}
    stored.write_json(directory / CLEANED_FOLDER / COUNTS_FILE, record)
    return counts


def cleaned(
    settings: config.DataConfig, directory: Path
) -> tuple[config.DataConfig, dict[str, tuple[documents.File, ...]]]:
    """The settings with the cleaned documents as sources, and their files in order."""
    folders = {source.name: directory / CLEANED_FOLDER / source.name for source in settings.sources}
    sources = tuple(
        config.Source(source.name, str(folders[source.name]), source.weight)
        for source in settings.sources
    )
    files = {
        name: tuple(stored.file(path) for path in sorted(folder.glob("*" + stored.SUFFIX)))
        for name, folder in folders.items()
    }
    return dataclasses.replace(settings, sources=sources), files


def read_cleaned(directory: str | Path) -> Iterator[Document]:
    """Streams the documents that cleaning left, source by source, in order."""
    for path in sorted((Path(directory) / CLEANED_FOLDER).glob(f"*/*{stored.SUFFIX}")):
        yield from stored.read(path, path.parent.name)


def read_rejected(directory: str | Path) -> Iterator[Rejected]:
    """Streams the rejected documents, by source and part."""
    for path in sorted((Path(directory) / REJECTED_FOLDER).glob(f"*/*{stored.SUFFIX}")):
        for item, _ in stored.read_rejected(path, path.parent.name):
            yield item


def load_counts(directory: str | Path) -> dict[str, Counts]:
    """The counts of each source; empty if nothing was cleaned."""
    try:
        record = json.loads((Path(directory) / CLEANED_FOLDER / COUNTS_FILE).read_text())
    except FileNotFoundError:
        return {}
    return {source: Counts.from_plain(found) for source, found in record.items()}


def remove(directory: Path) -> None:
    """Removes what cleaning has written to a folder, if anything, and nothing else."""
    _remove_unfinished(directory)
    _remove_others((), directory)
    (directory / CLEANED_FOLDER / COUNTS_FILE).unlink(missing_ok=True)
    for kind in (CLEANED_FOLDER, REJECTED_FOLDER):
        for folder in (*(directory / kind).glob("*"), directory / kind):
            with contextlib.suppress(OSError):  # not empty, or no folder
                folder.rmdir()


def writes(path: Path) -> bool:
    """Whether cleaning writes a file of this path, relative to its folder.

    Folders of these names may also hold other files.
    """
    return path.parts[0] in _FOLDERS and _PART_FILE.fullmatch(path.name) is not None


def _phases(
    settings: config.DataConfig, parts: Sequence[Part], directory: Path, scorer: Scorer | None
) -> list[list[Task]]:
    """The tasks of each phase; a phase's output depends on all steps up to its last."""
    cleaning, corpus = settings.cleaning, [part.fingerprint() for part in parts]
    model = perplexity.fingerprint(scorer) if "perplexity" in cleaning.names else ""
    found: list[list[Task]] = []
    names: list[str] = []
    before: list[Task] | list[None] = [None] * len(parts)
    for phase in build.phases(cleaning):
        names += phase.steps
        steps = cleaning.plain([*names, phase.compares] if phase.compares else names)
        others = [steps, corpus if phase.number else []]
        others += [model] if "perplexity" in names else []
        folder = directory / _PHASES_FOLDER / str(phase.number) if phase.compares else directory
        before = [
            Task(part, phase, cleaning, folder, earlier, part.fingerprint(*others), scorer)
            for part, earlier in zip(parts, before, strict=True)
        ]
        found.append(before)
    return found


def _run(tasks: Sequence[Task], run: Run, logs: Path, display: progress.Display) -> None:
    left = [task for task in tasks if task.counts() is None]
    if left:
        with display.phase(left) as watch:
            run(left, watch)
    missing = [task for task in left if task.counts() is None]
    if missing:
        part = missing[0].part
        raise RuntimeError(
            f"{len(missing)} of {len(tasks)} parts were not cleaned, first part {part.number} of "
            f"source {part.source.name!r}: their logs are in {logs}. The others are done: run it "
            "again to go on."
        )


def _compare(tasks: Sequence[Task], following: Task) -> None:
    """Joins the indices of all parts into the first step of the next phase."""
    documents = itertools.chain.from_iterable(
        stored.read(task.cleaned, task.part.source.name) for task in tasks
    )
    indices = [index.load(task.index) for task in tasks]
    step = build.joined(following.config, tasks[0].phase.compares, indices, documents)
    path = following.folder / STEP_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = stored.partial(path)
    unfinished.write_bytes(pickle.dumps(step))
    unfinished.replace(path)


def _totals(tasks: Sequence[Task]) -> dict[str, Counts]:
    totals: dict[str, Counts] = {}
    for task in tasks:
        name, counts = task.part.source.name, task.counts()
        assert counts is not None
        totals[name] = totals[name] + counts if name in totals else counts
    for counts in totals.values():
        counts.check()
    return totals


def _check_damage(tasks: Sequence[Task], settings: config.DataConfig) -> None:
    for source, counts in _totals(tasks).items():
        if counts.damage.total() > settings.max_rejected_share * counts.documents:
            raise ValueError(
                rejects.complaint(
                    source,
                    counts.damage,
                    counts.documents,
                    counts.first,
                    settings,
                    tasks[0].rejected.parent.with_name(source),
                )
            )


def _remove_unfinished(directory: Path) -> None:
    """Removes the incomplete files of killed processes."""
    for folder in _FOLDERS:
        for path in (directory / folder).rglob(f"*{stored.PARTIAL}*"):
            path.unlink(missing_ok=True)


def _remove_others(tasks: Sequence[Task], directory: Path) -> None:
    """Removes what does not belong to these tasks: earlier phases, and parts of other input."""
    for folder in (directory / _PHASES_FOLDER).glob("[0-9]"):
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # it is not there, or not empty
        (directory / _PHASES_FOLDER).rmdir()
    (directory / STEP_FILE).unlink(missing_ok=True)
    ours = {path for task in tasks for path in (task.cleaned, task.rejected, task.record)}
    for kind in (CLEANED_FOLDER, REJECTED_FOLDER):
        for path in (directory / kind).glob("*/*"):
            if writes(path.relative_to(directory)) and path not in ours:
                path.unlink()
