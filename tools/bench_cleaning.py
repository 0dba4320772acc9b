#!/usr/bin/env python3
"""Benchmarks cleaning steps against datatrove's, on Debian's package descriptions.

    tools/bench_cleaning.py --documents=20000 --rounds=5 --join=10

Each step is timed alone, and all in sequence, in one process on one core. Both sides take turns on
the same documents, which differ between rounds, so that caches of words come from other texts.
"""

import argparse
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from llmjax.data import cleaning
from llmjax.data.cleaning import Document, Step, language
from tools import corpora

# Takes the texts of documents and returns how many it keeps.
Side = Callable[[Sequence[str]], int]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=20_000, help="in all (default: 20000)")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns (default: 5)")
    parser.add_argument(
        "--join", type=int, default=1, help="descriptions per document (default: 1)"
    )
    parser.add_argument("--folder", type=pathlib.Path, default=corpora.default_folder())
    options = parser.parse_args(arguments)
    rounds = _rounds(options)
    size = statistics.mean(len(text.encode()) for texts in rounds for text in texts)
    print(
        f"{options.documents} documents of {size:.0f} bytes on average, {options.rounds} rounds\n"
    )
    print("| step | kept | documents/s | MB/s | datatrove: kept | documents/s | speed |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, sides in _sides().items():
        kept, rates = zip(*_timed(sides, rounds), strict=True)
        rate, peer = map(statistics.median, rates)
        speed = statistics.median(a / b for a, b in zip(*rates, strict=True))
        print(
            f"| {name} | {kept[0]:,} | {rate:,.0f} | {rate * size / 1e6:.2f} | "
            f"{kept[1]:,} | {peer:,.0f} | {speed:.1f} |",
            flush=True,
        )


def _rounds(options: argparse.Namespace) -> list[list[str]]:
    """Documents for the untimed warm-up round, then for each timed round."""
    path = corpora.fetch("debian", options.folder)
    texts = (record["text"] for record in corpora.read(path, "en"))
    joined = iter(lambda: "\n\n".join(itertools.islice(texts, options.join)), "")
    documents = list(itertools.islice(joined, options.documents))
    # Neighbours are alike, so each round samples the whole corpus.
    parts = options.rounds + 1
    return [documents[number::parts] for number in range(parts)]


def _timed(sides: Sequence[Side], rounds: Sequence[Sequence[str]]) -> list[tuple[int, list[float]]]:
    """Documents that each side keeps, and documents/s in each round except the first."""
    kept = [0 for _ in sides]
    rates: list[list[float]] = [[] for _ in sides]
    for number, texts in enumerate(rounds):
        order = list(range(len(sides)))
        for which in order if number % 2 else reversed(order):
            start = time.perf_counter()
            kept[which] += sides[which](texts)
            if number:
                rates[which].append(len(texts) / (time.perf_counter() - start))
    return list(zip(kept, rates, strict=True))


def _sides() -> Mapping[str, tuple[Side, Side]]:
    """Our steps and datatrove's by name: single steps, and sequences in FineWeb's order."""
    single: dict[str, tuple[Step, Any]] = {
        "repair": (cleaning.Repair(), _repair()),
        "language": (cleaning.Language(), _language_filter()),
        "gopher_repetition": (cleaning.GopherRepetition(), _filter("GopherRepetitionFilter")),
        "gopher_quality": (cleaning.GopherQuality(), _filter("GopherQualityFilter")),
        "c4_quality": (
            cleaning.C4Quality(terminal_marks=False),
            _filter("C4QualityFilter", filter_no_terminal_punct=False),
        ),
        "fineweb_quality": (cleaning.FineWebQuality(), _filter("FineWebQualityFilter")),
    }
    names = list(single)
    rows = {**{name: [name] for name in names}, "the last four": names[2:], "all six": names}
    return {
        name: (_ours([single[n][0] for n in row]), _theirs([single[n][1] for n in row]))
        for name, row in rows.items()
    }


def _ours(steps: Sequence[Step]) -> Side:
    def side(texts: Sequence[str]) -> int:
        return sum(isinstance(cleaning.clean(Document(text), steps), Document) for text in texts)

    return side


def _theirs(filters: Iterable[Any]) -> Side:
    """A pipeline of datatrove's filters."""
    from datatrove.data import Document as Theirs

    pipeline = list(filters)

    def side(texts: Sequence[str]) -> int:
        documents: Iterable[Any] = (Theirs(text=text, id="") for text in texts)
        for step in pipeline:
            documents = step.run(documents)
        return sum(1 for _ in documents)

    return side


def _filter(name: str, **settings: Any) -> Any:
    from datatrove.pipeline import filters

    return getattr(filters, name)(**settings)


def _repair() -> Any:
    from datatrove.pipeline.formatters import FTFYFormatter

    return FTFYFormatter(unescape_html=False, uncurl_quotes=False)


def _language_filter() -> Any:
    """datatrove's language filter, with a local model instead of the one it would download."""
    filter_ = _filter("LanguageFilter", languages=["en"])
    filter_.model._model = language._model()
    return filter_


if __name__ == "__main__":
    main()
