"""Passes one part through one phase: the work of one process, on any machine."""

import dataclasses
import functools
import itertools
import json
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmjax.data import documents
from llmjax.data.cleaning import build, stored
from llmjax.data.cleaning.build import Phase
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.cleaning.counts import FAILED, READ, Counts
from llmjax.data.cleaning.document import Document, Rejected, Step, clean
from llmjax.data.cleaning.parts import Part
from llmjax.data.cleaning.perplexity import Scorer

CLEANED_FOLDER, REJECTED_FOLDER, INDEX_FOLDER = "cleaned", "rejected", "index"
# The first step of a phase, with what it compares with.
STEP_FILE = "step.pickle"

_REPORT_SECONDS = 0.5

Report = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Task:
    """A part that passes through the steps of a phase.

    Attributes:
        part: the input.
        phase: the steps.
        config: settings of the steps.
        folder: where this phase writes: `cleaned/SOURCE/PART.jsonl.zst` the documents it keeps,
            `rejected/SOURCE/PART.jsonl.zst` those that this phase or an earlier one rejected, and
            finally `cleaned/SOURCE/PART.json` the counts.
        before: the task of the same part in the previous phase, if any.
        fingerprint: hash of everything that determines the output.
        scorer: for the step `perplexity`, if it is among the steps.
    """

    part: Part
    phase: Phase
    config: CleaningConfig
    folder: Path
    before: "Task | None"
    fingerprint: str
    scorer: Scorer | None = None

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.before.cleaned.stat().st_size if self.before else self.part.size

    @property
    def cleaned(self) -> Path:
        """The file of documents that are kept."""
        return self._file(CLEANED_FOLDER, stored.SUFFIX)

    @property
    def rejected(self) -> Path:
        """The file of rejected documents."""
        return self._file(REJECTED_FOLDER, stored.SUFFIX)

    @property
    def index(self) -> Path:
        """The folder of the index for the next phase."""
        return self._file(INDEX_FOLDER, "")

    @property
    def record(self) -> Path:
        """The file of the counts, which marks the task as done."""
        return self._file(CLEANED_FOLDER, ".json")

    @property
    def running(self) -> Path:
        """The file of the counts so far."""
        return self._file(CLEANED_FOLDER, ".running.json")

    def _file(self, kind: str, suffix: str) -> Path:
        return self.folder / kind / self.part.source.name / (self.part.name + suffix)

    def counts(self) -> Counts | None:
        """The counts of the part's documents; None if it has not been cleaned."""
        try:
            record = json.loads(self.record.read_text())
            sizes = [self.cleaned.stat().st_size, self.rejected.stat().st_size]
        except (FileNotFoundError, ValueError):
            return None
        if record["fingerprint"] != self.fingerprint or record["sizes"] != sizes:
            return None
        return Counts.from_plain(record["counts"])

    def run(self, report: Report = lambda: None) -> None:
        """Cleans the part, unless that is done.

        Args:
            report: called now and then, after the counts so far have been written.
        """
        if self.counts() is not None:
            return
        for path in (self.cleaned, self.rejected):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)  # of other output, which goes now
        writers = stored.Writer(self.cleaned), stored.Writer(self.rejected)
        try:
            counts = self._clean(*writers, report)
            counts.check()
            sizes = [writer.close() for writer in writers]
        except BaseException:
            for writer in writers:
                writer.discard()
            raise
        finally:
            self.running.unlink(missing_ok=True)
        record = {"fingerprint": self.fingerprint, "sizes": sizes, "counts": counts.plain()}
        stored.write_json(self.record, record)

    def _clean(self, cleaned: stored.Writer, rejected: stored.Writer, report: Report) -> Counts:
        counts = Counts([*([READ] if self.before is None else []), *self.phase.steps])
        if self.before is not None:
            rejected.append(self.before.rejected)
        kept = self._kept(counts, cleaned, rejected, report)
        if self.phase.compares:
            build.index(self.config, self.phase.compares, kept).save(self.index)
        for _ in kept:
            pass
        if self.before is None:
            return counts
        earlier = self.before.counts()
        assert earlier is not None, "a phase begins when the one before is done"
        return earlier.then(counts)

    def _kept(
        self, counts: Counts, cleaned: stored.Writer, rejected: stored.Writer, report: Report
    ) -> Iterator[Document]:
        """Yields and writes the documents that are kept; stores the others, and counts all."""
        steps = [Watched(name, self._step(name), counts) for name in self.phase.steps]
        due = time.monotonic() + _REPORT_SECONDS
        for item in self._items(counts):
            if time.monotonic() >= due:
                stored.write_json(self.running, counts.plain())
                report()
                due = time.monotonic() + _REPORT_SECONDS
            counts.documents += item.count if isinstance(item, documents.Rejected) else 1
            result = clean(item, steps) if isinstance(item, Document) else item
            if isinstance(result, Document):
                line, reason = stored.encode(result)
                if not reason:
                    cleaned.write(line)
                    counts.kept += 1
                    yield result
                    continue
                result = Rejected(result, FAILED + reason, step=list(counts.rejected)[-1])
            count = result.count if isinstance(result, documents.Rejected) else 1
            if isinstance(result, documents.Rejected):
                result = unread(result, self.part.source.name)
            rejected.write(stored.encode_rejected(result, count))
            counts.reject(result, count)

    def _items(self, counts: Counts) -> Iterator[documents.Item]:
        def advance(size: int) -> None:
            counts.read_bytes += size

        source = self.part.source
        if self.before is not None:
            return stored.read(self.before.cleaned, source.name, advance)
        return itertools.chain.from_iterable(
            documents.read(file, source, advance, metadata=True) for file in self.part.files
        )

    def _step(self, name: str) -> Step:
        if name not in build.COMPARISONS:
            return build.step(self.config, name, self.scorer)
        path = self.folder / STEP_FILE
        return _compared(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _compared(path: Path, modified_ns: int) -> Step:
    """Loads a saved step; its memory is shared by all parts that a process cleans."""
    del modified_ns  # a cache key: a step saved under the same name later is another one
    with path.open("rb") as stream:
        return pickle.load(stream)


def unread(item: documents.Rejected, source: str) -> Rejected:
    """A piece that could not be read, as if a step had rejected it."""
    text = item.raw.decode(errors="backslashreplace")
    document = Document(text, f"{item.file}:{item.position}", source, {"unit": item.unit})
    return Rejected(document, item.reason, step=READ)


class Watched:
    """A timed step that rejects documents on which it fails or of which it leaves no text."""

    def __init__(self, name: str, step: Step, counts: Counts) -> None:
        self.name, self._step, self._seconds = name, step, counts.seconds

    def __call__(self, document: Document) -> Document | Rejected:
        """The step's result for a document, under the step's name in the config.

        Raises:
            ImportError, OSError: something that the step needs is missing, which is no document's
                fault.
        """
        began = time.perf_counter()
        try:
            result = self._step(document)
        except (ImportError, OSError):
            raise
        except Exception as error:  # a hostile document may cause any error in a library
            return Rejected(document, FAILED + type(error).__name__, step=self.name)
        finally:
            self._seconds[self.name] += time.perf_counter() - began
        if isinstance(result, Rejected):
            return dataclasses.replace(result, step=self.name)
        if result.text is not document.text and (reason := stored.unsound(result.text)):
            return Rejected(document, reason, step=self.name)
        return result
