"""Reports the effect of cleaning on a corpus: its quality by source, before and after each step."""

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from llmjax.data.cleaning.counts import READ
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.quality import measuring, metrics
from llmjax.data.quality.measuring import Measurement, Quality, QualityConfig
from llmjax.data.quality.sketches import Sample, hash_text
from llmjax.data.quality.topics import Topic, Topics

RAW, CLEANED = "raw", "cleaned"
REPORT_FILE, PAGE_FILE = "quality.json", "quality.html"

_DEFAULT = QualityConfig()
_COMPARED = 256  # documents whose text is compared before and after
_CHARACTERS = 4000  # kept of each of them


@dataclasses.dataclass(frozen=True)
class Stage:
    """The quality of the documents left after a step; of all documents for `RAW`."""

    name: str
    quality: Quality


@dataclasses.dataclass(frozen=True)
class Source:
    """The quality of a source, or of all sources together.

    Attributes:
        name: the source's name; "" for all together.
        stages: `RAW` and, after cleaning, every step in order. What is left after a step is what
            was kept in the end plus what later steps rejected, as these received it.
        unaccounted: documents before cleaning minus those kept and those rejected.
        unreadable: pieces of files that yielded no document.
    """

    name: str
    stages: tuple[Stage, ...]
    unaccounted: int = 0
    unreadable: int = 0

    @property
    def raw(self) -> Quality:
        """The quality before cleaning."""
        return self.stages[0].quality

    @property
    def cleaned(self) -> Quality:
        """The quality after cleaning."""
        return self.stages[-1].quality


@dataclasses.dataclass(frozen=True)
class Example:
    """The beginning of a rejected document."""

    id: str
    source: str
    text: str
    score: float | None


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a step rejected documents, how many, and a random sample of them."""

    reason: str
    documents: int
    examples: tuple[Example, ...]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step rejected: documents by source, and reasons, most frequent first."""

    name: str
    documents: dict[str, int]
    reasons: tuple[Reason, ...]


@dataclasses.dataclass(frozen=True)
class Edit:
    """A document that was kept with changed text: the beginnings of both versions."""

    id: str
    source: str
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class Edits:
    """A random sample of kept documents: how many were compared and edited, with examples."""

    compared: int = 0
    edited: int = 0
    examples: tuple[Edit, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole report; `write` turns it into a page and a JSON file.

    Attributes:
        total: all sources together.
        sources: each source, by name.
        steps: the cleaning steps, in order.
        topics: the topics of a sample of the raw documents.
        edits: changes to documents that were kept.
    """

    total: Source
    sources: tuple[Source, ...]
    steps: tuple[Step, ...]
    topics: tuple[Topic, ...]
    edits: Edits

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON values, with the meanings of metrics under `metrics`."""
        meanings = {
            family: [dataclasses.asdict(one) for one in metrics.of(kind)]
            for family, (_, kind) in measuring.FAMILIES.items()
        }
        return {"version": 1, **dataclasses.asdict(self), "metrics": meanings}


def report(
    before: Iterable[Document] | None,
    after: Iterable[Document] | None = None,
    rejected: Iterable[Rejected] | None = None,
    *,
    steps: Sequence[str] = (),
    config: QualityConfig = _DEFAULT,
) -> Report:
    """Measures a corpus or the effect of cleaning it; every iterable is read once.

    Args:
        before: documents before cleaning; None takes the union of the other two, which is the same
            unless steps edited them.
        after: documents that were kept, with their ids; None if nothing was cleaned.
        rejected: rejected documents with the names of the steps, as these received them.
        steps: names of all steps in order; other steps come last, by name.
        config: settings of the measurement.
    """
    survey = Survey(config)
    for document in before or ():
        survey.add_before(document)
    for document in after or ():
        survey.add_after(document)
    for turned_away in rejected or ():
        survey.add_rejected(turned_away)
    return survey.report(steps, cleaned=after is not None or rejected is not None)


def write(report: Report, directory: str | pathlib.Path, title: str = "Corpus") -> pathlib.Path:
    """Writes `quality.json`, and the same numbers as `quality.html`; returns the page's path."""
    from llmjax.data.quality import page

    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / REPORT_FILE).write_text(text + "\n", "utf-8", errors="backslashreplace")
    path = folder / PAGE_FILE
    path.write_text(page.render(report, title), "utf-8", errors="backslashreplace")
    return path


class Survey:
    """Counts the documents of a report, in any order and in parts, which `merge` joins."""

    def __init__(self, config: QualityConfig = _DEFAULT) -> None:
        self._config = config
        # By source and stage: RAW, CLEANED, or the step that rejected the documents.
        self._measured: dict[tuple[str, str], Measurement] = {}
        self._reasons: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._examples: dict[tuple[str, str], Sample[Example]] = {}
        self._before: Sample[Document] = Sample(_COMPARED)  # the beginnings of documents
        self._after: Sample[Document] = Sample(_COMPARED)

    def add_before(self, document: Document) -> None:
        """Counts a document before cleaning."""
        self._at(document.source, RAW).add(document)
        self._before.add(_key(document), lambda: _beginning(document))

    def add_after(self, document: Document) -> None:
        """Counts a document that was kept."""
        self._at(document.source, CLEANED).add(document)
        self._after.add(_key(document), lambda: _beginning(document))

    def add_rejected(self, rejected: Rejected, count: int = 1) -> None:
        """Counts a rejected document.

        For the step `READ` it represents `count` pieces, which are not documents.
        """
        document, step = rejected.document, rejected.step or "unnamed"
        if step == READ:
            self._at(document.source, READ)
        else:
            self._at(document.source, f"step {step}").add(document)
        self._reasons[document.source, step, rejected.reason] += count
        text = document.text[: self._config.shown]
        score = rejected.score
        finite = score if score is not None and math.isfinite(score) else None
        example = Example(document.id, document.source, text, finite)
        self._shown(step, rejected.reason).add(_key(document), lambda: example)

    def merge(self, other: "Survey") -> None:
        """Adds the counts of another instance with the same config."""
        for place, measurement in other._measured.items():
            self._at(*place).merge(measurement)
        self._reasons.update(other._reasons)
        for place, sample in other._examples.items():
            self._shown(*place).merge(sample)
        self._before.merge(other._before)
        self._after.merge(other._after)

    def report(self, steps: Sequence[str] = (), *, cleaned: bool = True) -> Report:
        """Computes the report.

        Args:
            steps: as for `report`.
            cleaned: whether these documents were cleaned at all.
        """
        unnamed = {step for _, step, _ in self._reasons} - set(steps)
        steps = (*steps, *sorted(unnamed)) if cleaned else ()
        names = sorted({source for source, _ in self._measured})
        raw = self._raw(names)
        topics = raw.topics()
        return Report(
            total=self._source("", names, steps, cleaned, topics),
            sources=tuple(self._source(n, [n], steps, cleaned, topics) for n in names),
            steps=tuple(map(self._step, steps)),
            topics=topics.found,
            edits=self._edits(),
        )

    def _source(
        self, name: str, parts: Sequence[str], steps: Sequence[str], cleaned: bool, topics: Topics
    ) -> Source:
        raw = self._raw(parts)
        came = Stage(RAW, raw.result(topics))
        if not cleaned:
            return Source(name, (came,))
        # From the last step to the first: each adds back what the step rejected.
        left = self._joined(parts, CLEANED)
        quality = left.result(topics)
        stages = []
        for step in reversed([step for step in steps if step != READ] or [CLEANED]):
            stages.append(Stage(step, quality))
            back = self._joined(parts, f"step {step}")
            if back.documents:
                left.merge(back)
                quality = left.result(topics)
        unread = sum(n for (s, step, _), n in self._reasons.items() if s in parts and step == READ)
        return Source(name, (came, *reversed(stages)), raw.documents - left.documents, unread)

    def _raw(self, sources: Sequence[str]) -> Measurement:
        """The raw documents: counted as such, or else those kept plus those rejected."""
        if any(stage == RAW for _, stage in self._measured):
            return self._joined(sources, RAW)
        joined = Measurement(self._config)
        for (source, _), measurement in sorted(self._measured.items(), key=lambda pair: pair[0]):
            if source in sources:
                joined.merge(measurement)
        return joined

    def _joined(self, sources: Sequence[str], stage: str) -> Measurement:
        joined = Measurement(self._config)
        for source in sources:
            if (source, stage) in self._measured:
                joined.merge(self._measured[source, stage])
        return joined

    def _step(self, step: str) -> Step:
        by_source: collections.Counter[str] = collections.Counter()
        by_reason: collections.Counter[str] = collections.Counter()
        for (source, of, reason), count in sorted(self._reasons.items()):
            if of == step:
                by_source[source] += count
                by_reason[reason] += count
        reasons = tuple(
            Reason(reason, count, tuple(item for _, item in self._shown(step, reason).items()))
            for reason, count in by_reason.most_common()
        )
        return Step(step, dict(by_source), reasons)

    def _edits(self) -> Edits:
        """Edits of sampled documents: both samples keep the lowest ids, so they overlap."""
        after = {of: (text, kept) for (of, text), kept in self._after.items() if kept.id}
        before = {of: (text, came) for (of, text), came in self._before.items() if came.id}
        pairs = [(before[of], after[of]) for of in before if of in after]
        edited = [(came, kept) for (old, came), (new, kept) in pairs if old != new]
        shown = tuple(
            Edit(came.id, came.source, came.text, kept.text)
            for came, kept in edited[: 2 * self._config.examples]
        )
        return Edits(len(pairs), len(edited), shown)

    def _at(self, source: str, stage: str) -> Measurement:
        if (source, stage) not in self._measured:
            self._measured[source, stage] = Measurement(self._config)
        return self._measured[source, stage]

    def _shown(self, step: str, reason: str) -> Sample[Example]:
        if (step, reason) not in self._examples:
            self._examples[step, reason] = Sample(self._config.examples)
        return self._examples[step, reason]


def _beginning(document: Document) -> Document:
    return Document(document.text[:_CHARACTERS], document.id, document.source)


def _key(document: Document) -> tuple[int, int]:
    """Hashes of a document's source and id, and of its text."""
    place = f"{document.source}\0{document.id or document.text}"
    return hash_text(place), hash_text(document.text)
