#!/usr/bin/env python3
"""Evaluates cleaning steps that compare documents or detect their contents, on real texts.

    tools/judge_cleaning.py duplicates personal leaks speed --json=cleaning.json

`duplicates`: 20,000 of Debian's descriptions, a tenth of them edited copies, against the exact
Jaccard similarity of all pairs and against datasketch. `personal`: 2,000 descriptions with planted
personal data and 500 real mails whose headers provide labels. `leaks`: 1,000 evaluation examples
planted in descriptions among 20,000 clean ones. `speed`: all of these steps on one core, compared
with peers. Texts are fetched on first use, see tools/corpora.py. Needs the extra `data`, and
datasketch for `duplicates`; takes some minutes.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import rich.console
import rich.table

from tools.cleaning import leaks, private, similar, speed

Row = dict[str, object]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=sorted(JUDGES), metavar="NAME")
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
    parser.add_argument("--show", action="store_true", help="show misses and false alarms")
    options = parser.parse_args(arguments)
    results: dict[str, list[Row]] = {}
    for name in options.names:
        results[name] = list(JUDGES[name](options.show))
        show(name, results[name])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def show(title: str, rows: Iterable[Row]) -> None:
    """Prints rows as tables, a new one wherever the columns change."""
    table, columns = None, None
    console = rich.console.Console()
    for row in rows:
        if tuple(row) != columns:
            if table is not None:
                console.print(table)
            columns = tuple(row)
            table = rich.table.Table(*columns, title=title)
        assert table is not None
        values = row.values()
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else f"{v}" for v in values))
    if table is not None:
        console.print(table)


def _personal(show_faults: bool) -> Iterator[Row]:
    for texts, source in ((private.planted_texts(), "planted"), (private.mails(), "mails")):
        for row in private.judge(texts, show=show_faults):
            yield {"texts": source, **row}


JUDGES: Mapping[str, Callable[[bool], Iterator[Row]]] = {
    "duplicates": lambda _: similar.judge(),
    "leaks": lambda _: leaks.judge(),
    "personal": _personal,
    "speed": lambda _: speed.judge(),
}


if __name__ == "__main__":
    main()
