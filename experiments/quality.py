"""Measures the quality of text files, or of what cleaning made of them.

    python -m experiments.quality --data=web.jsonl.gz,books --output=reports/raw
    python -m experiments.quality --data=data/mixture --output=reports/mixture

writes quality.html, a page that opens offline, and quality.json with the same numbers, and prints
them. Of a folder that `experiments.prepare` left, it says what was kept and what was turned away,
by source and step; anything else is measured as it lies there, each path a source. Files are
measured in several processes, in bounded memory.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Sequence

from absl import flags as absl_flags
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments import flags
from llmjax.data import quality
from llmjax.data.quality import files, metrics

DATA = absl_flags.DEFINE_list("data", None, "Files, folders, globs, or a folder of prepared data.")
OUTPUT = absl_flags.DEFINE_string("output", None, "Folder for quality.html and quality.json.")
TEXT_FIELD = absl_flags.DEFINE_string("text_field", "text", "The field or column with the text.")
SPLIT = absl_flags.DEFINE_enum(
    "split", "file", ["file", "paragraph", "line"], "What a document is in plain text."
)
WORKERS = absl_flags.DEFINE_integer("workers", 0, "Processes; 0 is one for each core.")


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    if not DATA.value or not OUTPUT.value:
        missing = "output" if DATA.value else "data"
        raise flags.FlagError(f"--{missing} is missing: say what to measure and where to write")
    try:
        pieces, steps = files.find(DATA.value, TEXT_FIELD.value, SPLIT.value)  # type: ignore[arg-type]
    except (FileNotFoundError, ValueError) as error:
        raise flags.FlagError(f"--data={','.join(DATA.value)}: {error}") from error
    survey = measured(pieces, WORKERS.value or len(os.sched_getaffinity(0)))
    report = survey.report(steps, cleaned=any(piece.kind != "raw" for piece in pieces))
    page = quality.write(report, OUTPUT.value)
    Console().print(table(report))
    print(f"report: {page}")


def measured(pieces: Sequence[files.Piece], workers: int) -> quality.Survey:
    """All pieces measured, the largest first, with a progress bar."""
    survey = quality.Survey()
    pieces = sorted(pieces, key=lambda piece: -piece.file.size)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("Measuring", total=sum(piece.file.size for piece in pieces))
        if min(workers, len(pieces)) <= 1:
            for piece in pieces:
                survey.merge(piece.measure(advance=lambda size: bar.update(task, advance=size)))
            return survey
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            waiting = {pool.submit(piece.measure): piece.file.size for piece in pieces}
            for done in concurrent.futures.as_completed(waiting):
                bar.update(task, advance=waiting.pop(done))
                survey.merge(done.result())
    return survey


def table(report: quality.Report) -> Table:
    """All numbers of all sources together; each source has its own on the page."""
    stages = {"raw": report.total.raw}
    if len(report.total.stages) > 1:
        stages["cleaned"] = report.total.cleaned
    shown = Table("", *stages, title="Quality", title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for family, (_, kind) in {"amount": ("Amount", quality.Amount), **quality.FAMILIES}.items():
        for one in metrics.of(kind):
            values = [getattr(getattr(found, family), one.name) for found in stages.values()]
            if any(value is not None for value in values):
                shown.add_row(one.title, *map(one.written, values))
        shown.add_section()
    return shown


if __name__ == "__main__":
    flags.run(main)
