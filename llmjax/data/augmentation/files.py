"""Augments files of examples."""

import collections
import copy as copying
import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmjax.data import config, documents, examples, records
from llmjax.data.augmentation.control import Check, Pair, judge
from llmjax.data.augmentation.method import Method, generator

# Records that pass through a method and the checks together.
_LOT = 256
# Added fields: where an example comes from, and how it was augmented.
ORIGIN, PROVENANCE = "origin", "augmentation"


@dataclasses.dataclass
class Report:
    """Counts of an augmented file, which add up.

    Attributes:
        originals: examples that were read and kept unchanged.
        malformed: records without an example, by reason; they are left out.
        written: augmented examples that were kept, by method.
        dropped: augmented examples that were not kept, by method and reason. Written and dropped
            examples add up to originals times copies.
    """

    originals: int = 0
    malformed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    written: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dropped: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        return {
            "originals": self.originals,
            "malformed": dict(self.malformed),
            "written": dict(self.written),
            "dropped": {method: dict(reasons) for method, reasons in self.dropped.items()},
        }


@dataclasses.dataclass(frozen=True)
class _Original:
    """An example that was read, the fields of its copies, and the paths of its texts in them."""

    record: records.Record
    fields: Mapping[str, Any]
    places: tuple[examples.Place, ...]
    label: str | int | None

    def text(self, fields: Mapping[str, Any] | None = None) -> str:
        """The text that a model reads of it, or of other fields with the same form."""
        fields = self.fields if fields is None else fields
        return "\n".join(_get(fields, place) for place in self.places)


def augment_examples(
    source: config.ExampleSource,
    output: str | Path,
    methods: Sequence[Method],
    *,
    kind: config.Kind,
    copies: int = 1,
    seed: int = 0,
    checks: Sequence[Check] = (),
    advance: documents.Advance = lambda _: None,
) -> Report:
    """Writes a source's examples as JSON lines, each followed by its augmented copies.

    Only the texts that a model reads are rewritten (`examples.asked_places`), never those that it
    should write. All records get `origin`, the file and position of the original, unless they have
    one, as after an earlier augmentation. Hold out by it (split="grouped", split_field="origin"),
    or copies of held-out examples end up in training.
    Copies also get `augmentation`: the method, seed, index of the copy, and scores of the checks.
    Equal arguments give equal files, and an example's copies do not depend on other examples.

    Args:
        source: the examples.
        output: the file to write, `.jsonl`; it appears when complete.
        methods: each writes `copies` of every example.
        kind: kind of the examples.
        copies: number of copies per method.
        seed: random seed of all choices.
        checks: checks that copies must pass. A copy equal to the original or to an earlier one is
            always dropped.
        advance: called with the number of bytes read since the last call.

    Returns:
        Counts of what was read, written and dropped.

    Raises:
        FileNotFoundError: the source has no files.
        ValueError: the output is not a new .jsonl file, or an argument is out of range.
    """
    output, files = Path(output), documents.find_files(source, documents.RECORD_SUFFIXES)
    _check(output, files, methods, copies, seed)
    report = Report(dropped={method.name: collections.Counter() for method in methods})
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            read = _originals(source, files, kind, report, advance)
            while lot := list(itertools.islice(read, _LOT)):
                for record in _with_copies(lot, methods, copies, seed, checks, report):
                    stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return report


def _check(
    output: Path,
    files: Iterable[documents.File],
    methods: Sequence[Method],
    copies: int,
    seed: int,
) -> None:
    if output.suffix != ".jsonl" or any(f.path.resolve() == output.resolve() for f in files):
        raise ValueError(f"output is {str(output)!r}: name a .jsonl file that is not an input.")
    names = [method.name for method in methods]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"methods are {names}: give at least one, with distinct names.")
    if copies < 1 or seed < 0:
        raise ValueError(f"copies is {copies} and seed {seed}: use 1 or more, and 0 or more.")


def _originals(
    source: config.ExampleSource,
    files: Iterable[documents.File],
    kind: config.Kind,
    report: Report,
    advance: documents.Advance,
) -> Iterator[_Original]:
    for file in files:
        for record in records.read(file, advance):
            if isinstance(record, documents.Rejected):
                report.malformed[record.reason] += record.count
                continue
            try:
                label = examples.parse(record.fields, kind, source).label
            except examples.UnfitError as error:
                report.malformed[str(error)] += 1
                continue
            report.originals += 1
            places = tuple(examples.asked_places(record.fields, kind, source))
            fields = examples.without_repeats(record.fields, kind, source)
            yield _Original(record, fields, places, label)


def _with_copies(
    lot: Sequence[_Original],
    methods: Sequence[Method],
    copies: int,
    seed: int,
    checks: Sequence[Check],
    report: Report,
) -> Iterator[dict[str, Any]]:
    """The records of a batch, each followed by its copies."""
    followers: list[list[dict[str, Any]]] = [[] for _ in lot]
    seen = [{original.text()} for original in lot]
    for method, copy in itertools.product(methods, range(copies)):
        made = _written(lot, method, copy, seed)
        texts = [original.text(fields) for original, fields in zip(lot, made, strict=True)]
        pairs = [Pair(o.text(), text, o.label) for o, text in zip(lot, texts, strict=True)]
        for i, judgement in enumerate(judge(pairs, checks)):
            reason = judgement.dropped or ("duplicate copy" if texts[i] in seen[i] else "")
            if reason:
                report.dropped[method.name][reason] += 1
                continue
            report.written[method.name] += 1
            seen[i].add(texts[i])
            about = {"method": method.name, "seed": seed, "copy": copy, **judgement.scores}
            followers[i].append({**made[i], PROVENANCE: about})
    for original, written in zip(lot, followers, strict=True):
        fields, place = original.record.fields, f"{original.record.file}:{original.record.position}"
        origin = {ORIGIN: fields.get(ORIGIN, place)}
        yield {**fields, **origin}
        yield from ({**record, **origin} for record in written)


def _written(
    lot: Sequence[_Original], method: Method, copy: int, seed: int
) -> list[dict[str, Any]]:
    """The fields of each record, with its texts rewritten by a method."""
    texts = [_get(o.fields, place) for o in lot for place in o.places]
    rngs: list[random.Random] = [generator(text, seed, copy) for text in texts]
    anew = iter(method.batch(texts, rngs))
    made = []
    for original in lot:
        fields = copying.deepcopy(dict(original.fields))
        for place in original.places:
            _set(fields, place, next(anew))
        made.append(fields)
    return made


def _get(fields: Mapping[str, Any], place: examples.Place) -> str:
    value: Any = fields
    for step in place:
        value = value[step]
    return value


def _set(fields: dict[str, Any], place: examples.Place, text: str) -> None:
    value: Any = fields
    for step in place[:-1]:
        value = value[step]
    value[place[-1]] = text
