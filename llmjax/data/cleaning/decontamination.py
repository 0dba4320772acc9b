"""Evaluation sets kept out of training data, by n-grams of words that a document shares with them.

In short:

    examples = decontamination.examples(["gsm8k/test.jsonl", "mmlu/*.parquet"])
    step = decontamination.step(examples, Decontamination())
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from llmjax import checks
from llmjax.data.cleaning import shingles
from llmjax.data.cleaning.document import Document, Rejected

if TYPE_CHECKING:
    from llmjax.data import documents, records


@dataclasses.dataclass(frozen=True)
class Decontamination:
    """When a document is taken for a leak, and what becomes of it.

    The defaults are GPT-3's (Brown et al. 2020, appendix C): one 13-gram in common is enough; 200
    characters on either side go with it; what is left between must have 200 characters, and a
    document in more than ten pieces is rejected. The pieces stay one document here, with an empty
    line between. PaLM's measure (Chowdhery et al. 2022, section 8) is `n=8, share=0.7`: then short
    quotations, that many texts have, do not count.

    Attributes:
        n: words in an n-gram, without case, accents and punctuation.
        shortest: examples of fewer words are not looked for; those of fewer than `n` are looked
            for as a whole.
        share: an example has leaked if a document has more than this share of its n-grams.
        mode: "cut" takes the leak and its surroundings out, "reject" the document.
        window: how many characters on either side are cut out.
        least: pieces of fewer characters are dropped.
        most: a document that falls into more pieces is rejected.
    """

    n: int = 13
    shortest: int = 8
    share: float = 0.0
    mode: Literal["cut", "reject"] = "cut"
    window: int = 200
    least: int = 200
    most: int = 10

    def __post_init__(self) -> None:
        """Raises ValueError if a field has no meaning."""
        checks.require_choices(self, "Decontamination")
        checks.require_at_least(1, self, "Decontamination", ("n", "shortest", "most"))
        checks.require_at_least(0, self, "Decontamination", ("window", "least"))
        if not 0 <= self.share < 1:
            raise ValueError(f"Decontamination.share={self.share}: must be in [0, 1)")


@dataclasses.dataclass(frozen=True, eq=False)
class Leaks:
    """Cuts examples of evaluation sets out of documents, or turns these away.

    Attributes:
        settings: when a document is taken for a leak.
        examples: the ids of the examples that are looked for.
        sizes: how many n-grams each has, int64 [E].
        grams: for each length of n-gram, (hashes, examples): the hashes, uint64 [N], ascending, and
            whose they are, int64 [N].
    """

    name: ClassVar[str] = "decontamination"

    settings: Decontamination
    examples: tuple[str, ...]
    sizes: np.ndarray
    grams: Mapping[int, tuple[np.ndarray, np.ndarray]]

    def __call__(self, document: Document) -> Document | Rejected:
        """The document without leaks; metadata `contamination` has the ids of what leaked."""
        leaked = self._leaked(document.text)
        if not leaked:
            return document
        settings = self.settings
        ids = sorted({self.examples[example] for _, _, example in leaked})
        document = document.with_metadata(contamination=ids)
        if settings.mode == "reject":
            return Rejected(document, "evaluation data", float(len(ids)))
        kept = _outside(document.text, [(start, end) for start, end, _ in leaked], settings)
        if not kept:
            return Rejected(document, "little but evaluation data", float(len(ids)))
        if len(kept) > settings.most:
            return Rejected(document, "evaluation data in many places", float(len(kept)))
        return document.with_text("\n\n".join(kept))

    def _leaked(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, example) of all n-grams, as characters, that examples have leaked by."""
        hashes = shingles.hashes(shingles.WORD.findall(text))
        shared = [
            (n, *row)
            for n, (known, owners) in self.grams.items()
            for row in _shared(shingles.ngrams(hashes, n), known, owners)
        ]
        if not shared:
            return []
        found: dict[int, set[int]] = collections.defaultdict(set)
        for _, _, gram, example in shared:
            found[example].add(gram)
        limits = self.settings.share * self.sizes
        spans = [word.span() for word in shingles.WORD.finditer(text)]
        return [
            (spans[at][0], spans[at + n - 1][1], example)
            for n, at, _, example in shared
            if len(found[example]) > limits[example]
        ]


def step(examples: Iterable[tuple[str, str]], settings: Decontamination) -> Leaks:
    """The step that keeps examples out.

    Args:
        examples: ids and texts, from `examples` say.
        settings: when a document is taken for a leak.

    Raises:
        ValueError: no example has words enough.
    """
    ids: list[str] = []
    sizes: list[int] = []
    rows: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    for name, text in examples:
        hashes = shingles.hashes(shingles.WORD.findall(text))
        if len(hashes) < settings.shortest:
            continue
        n = min(settings.n, len(hashes))
        grams = np.unique(shingles.ngrams(hashes, n)).tolist()
        rows[n].extend((gram, len(ids)) for gram in grams)
        ids.append(name)
        sizes.append(len(grams))
    if not ids:
        raise ValueError(
            f"no example has {settings.shortest} words, so none can be looked for: give evaluation "
            "sets with longer texts, or lower Decontamination.shortest."
        )
    return Leaks(settings, tuple(ids), np.array(sizes), {n: _table(rows[n]) for n in sorted(rows)})


def examples(paths: Sequence[str], fields: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """The examples of evaluation sets, as (file:place, text).

    Args:
        paths: files, folders or globs; JSON lines and Parquet have an example a record, plain text
            an example a line.
        fields: of records, those whose texts count, together; none takes all texts.

    Raises:
        FileNotFoundError: nothing lies at a path.
        ValueError: a file cannot be read whole: a set with holes would let leaks pass.
    """
    from llmjax.data import config, documents, records

    source = config.Source("evaluation", "sets", split="line")
    for file in find(paths):
        is_record = file.name.endswith(documents.RECORD_SUFFIXES)
        for item in records.read(file) if is_record else documents.read(file, source):
            if isinstance(item, documents.Rejected):
                raise ValueError(_unreadable(file.path, item))
            yield _example(item, fields)


def find(paths: Sequence[str]) -> "list[documents.File]":
    """The files of evaluation sets, in order.

    Args:
        paths: files, folders or globs.

    Raises:
        FileNotFoundError: nothing lies at a path.
        ValueError: a file's suffix names no format that can be read.
    """
    # Sources have settings of cleaning, and so this module's, which is imported first.
    from llmjax.data import config, documents

    sources = [config.Source("evaluation", path) for path in paths]
    return [file for source in sources for file in documents.find_files(source)]


def _example(record: "records.Record | Document", fields: Sequence[str]) -> tuple[str, str]:
    if isinstance(record, Document):
        return record.id, record.text
    values = [record.fields.get(field) for field in fields] if fields else record.fields
    return f"{record.file}:{record.position}", "\n".join(_strings(values))


def _unreadable(path: Path, item: "documents.Rejected") -> str:
    where = f"{path}, {item.unit} {item.position}"
    return f"an evaluation set cannot be read: {where} ({item.reason}). Mend the file."


def _strings(value: Any) -> Iterator[str]:
    """All texts within a value of JSON, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, Sequence):
        yield from itertools.chain.from_iterable(map(_strings, value))


def _table(rows: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.array([gram for gram, _ in rows], np.uint64)
    owners = np.array([example for _, example in rows], np.int64)
    order = np.lexsort((owners, hashes))
    return hashes[order], owners[order]


def _shared(
    grams: np.ndarray, known: np.ndarray, owners: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """(place, n-gram, example) of all n-grams that examples have, once for each example."""
    first = np.searchsorted(known, grams)
    for at in np.flatnonzero(known[np.minimum(first, len(known) - 1)] == grams).tolist():
        last = np.searchsorted(known, grams[at], side="right")
        for example in owners[first[at] : last].tolist():
            yield at, int(grams[at]), example


def _outside(text: str, spans: Sequence[tuple[int, int]], settings: Decontamination) -> list[str]:
    """What lies between spans with their windows, in pieces that are long enough."""
    end, found = 0, []
    for start, stop in sorted(spans):
        found.append(text[end : max(end, start - settings.window)])
        end = max(end, stop + settings.window)
    found.append(text[end:])
    pieces = [piece.strip() for piece in found]
    return [piece for piece in pieces if piece and len(piece) >= settings.least]
