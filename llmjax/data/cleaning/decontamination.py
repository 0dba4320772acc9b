"""Keeps evaluation sets out of training data, by word n-grams shared with documents.

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
    """When a document counts as containing an example, and what to do then.

    The defaults are GPT-3's (Brown et al. 2020, appendix C): one shared 13-gram suffices; 200
    characters on either side are removed with it; a piece between removals must have 200
    characters; and a document in more than ten pieces is rejected. Here the pieces stay one
    document, joined by empty lines. PaLM's rule (Chowdhery et al. 2022, section 8) is
    `n=8, share=0.7`, under which short quotations found in many texts do not count.

    Attributes:
        n: words in an n-gram, ignoring case, accents and punctuation.
        shortest: examples with fewer words are ignored; those with fewer than `n` are searched as a
            whole.
        share: an example has leaked if a document has more than this share of its n-grams.
        mode: "cut" removes the leak and its surroundings, "reject" the document.
        window: characters removed on either side.
        least: pieces with fewer characters are dropped.
        most: a document in more pieces is rejected.
    """

    n: int = 13
    shortest: int = 8
    share: float = 0.0
    mode: Literal["cut", "reject"] = "cut"
    window: int = 200
    least: int = 200
    most: int = 10

    def __post_init__(self) -> None:
        """Raises ValueError if a field is invalid."""
        checks.require_choices(self, "Decontamination")
        checks.require_at_least(1, self, "Decontamination", ("n", "shortest", "most"))
        checks.require_at_least(0, self, "Decontamination", ("window", "least"))
        if not 0 <= self.share < 1:
            raise ValueError(f"Decontamination.share={self.share}: must be in [0, 1)")


@dataclasses.dataclass(frozen=True, eq=False)
class Leaks:
    """Removes examples of evaluation sets from documents, or rejects the documents.

    Attributes:
        settings: when a document counts as containing an example.
        examples: ids of the examples to look for.
        sizes: number of n-grams of each example, int64 [E].
        grams: for each n-gram length, (hashes, examples): the hashes, uint64 [N], ascending, and
            the example of each, int64 [N].
    """

    name: ClassVar[str] = "decontamination"

    settings: Decontamination
    examples: tuple[str, ...]
    sizes: np.ndarray
    grams: Mapping[int, tuple[np.ndarray, np.ndarray]]

    def __call__(self, document: Document) -> Document | Rejected:
        """The document without leaks; metadata `contamination` lists the leaked examples."""
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
            return Rejected(document, "mostly evaluation data", float(len(ids)))
        if len(kept) > settings.most:
            return Rejected(document, "evaluation data in too many places", float(len(kept)))
        return document.with_text("\n\n".join(kept))

    def _leaked(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, example) in characters, for all n-grams of leaked examples."""
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
    """Builds the step that removes examples.

    Args:
        examples: ids and texts, such as from `examples`.
        settings: when a document counts as containing an example.

    Raises:
        ValueError: no example has enough words.
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
    """Reads the examples of evaluation sets, as (file:position, text).

    A record with several texts gives all of them joined, and each: documents that quote a question
    need not have its answer, or give it in another order.

    Args:
        paths: files, folders or globs. JSON lines and Parquet have one example per record, plain
            text one per line.
        fields: fields of a record whose texts are combined; empty for all texts.

    Raises:
        FileNotFoundError: there is nothing to read at a path.
        ValueError: a file cannot be read in full; an incomplete set would let leaks pass.
    """
    from llmjax.data import config, documents, records

    source = config.Source("evaluation", "sets", split="line")
    for file in find(paths):
        is_record = file.name.endswith(documents.RECORD_SUFFIXES)
        for item in records.read(file) if is_record else documents.read(file, source):
            if isinstance(item, documents.Rejected):
                raise ValueError(_unreadable(file.path, item))
            yield from _examples(item, fields)


def find(paths: Sequence[str]) -> "list[documents.File]":
    """Lists the files of evaluation sets, in order.

    Args:
        paths: files, folders or globs.

    Raises:
        FileNotFoundError: there is nothing to read at a path.
        ValueError: a file's suffix does not name a supported format.
    """
    # Imported here because `config` imports this module.
    from llmjax.data import config, documents

    sources = [config.Source("evaluation", path) for path in paths]
    return [file for source in sources for file in documents.find_files(source)]


def _examples(
    record: "records.Record | Document", fields: Sequence[str]
) -> Iterator[tuple[str, str]]:
    if isinstance(record, Document):
        yield record.id, record.text
        return
    values = [record.fields.get(field) for field in fields] if fields else record.fields
    texts = list(_strings(values))
    for text in dict.fromkeys(["\n".join(texts), *texts]):
        yield f"{record.file}:{record.position}", text


def _unreadable(path: Path, item: "documents.Rejected") -> str:
    where = f"{path}, {item.unit} {item.position}"
    return f"an evaluation set cannot be read: {where} ({item.reason}). Fix the file."


def _strings(value: Any) -> Iterator[str]:
    """All texts within a JSON value, in order."""
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
    """(position, n-gram, example) of all n-grams shared with examples, once per example."""
    first = np.searchsorted(known, grams)
    for at in np.flatnonzero(known[np.minimum(first, len(known) - 1)] == grams).tolist():
        last = np.searchsorted(known, grams[at], side="right")
        for example in owners[first[at] : last].tolist():
            yield at, int(grams[at]), example


def _outside(text: str, spans: Sequence[tuple[int, int]], settings: Decontamination) -> list[str]:
    """The text outside of spans and their windows, in pieces that are long enough."""
    end, found = 0, []
    for start, stop in sorted(spans):
        found.append(text[end : max(end, start - settings.window)])
        end = max(end, stop + settings.window)
    found.append(text[end:])
    pieces = [piece.strip() for piece in found]
    return [piece for piece in pieces if piece and len(piece) >= settings.least]
