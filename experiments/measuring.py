"""Measures the quality of files in several processes, and shows it in the terminal."""

import concurrent.futures
import multiprocessing
import os
import pathlib
from collections.abc import Sequence

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llmjax.data import quality
from llmjax.data.quality import files, metrics

_DEFAULT = quality.QualityConfig()


def report(
    paths: Sequence[str],
    output: str | pathlib.Path,
    config: quality.QualityConfig = _DEFAULT,
    *,
    workers: int = 0,
    text_field: str = "text",
    split: files.Split = "file",
) -> tuple[quality.Report, pathlib.Path]:
    """Measures files, or the results of cleaning, and writes the page and the numbers.

    Args:
        paths: files, folders or globs, or a folder of prepared data.
        output: the folder for quality.html and quality.json.
        config: what to measure.
        workers: number of processes; 0 for one per core.
        text_field: as in `data.Source`.
        split: as in `data.Source`.

    Returns:
        The report, and the path of the page.

    Raises:
        FileNotFoundError, ValueError: there is nothing that can be read.
    """
    pieces, steps = files.find(paths, text_field, split)
    survey = measured(pieces, workers or len(os.sched_getaffinity(0)), config)
    found = survey.report(steps, cleaned=any(piece.kind != "raw" for piece in pieces))
    title = ", ".join(pathlib.Path(path).name for path in paths[:3])
    return found, quality.write(found, output, title)


def measured(
    pieces: Sequence[files.Piece], workers: int, config: quality.QualityConfig = _DEFAULT
) -> quality.Survey:
    """Measures all pieces, the largest first, with a progress bar."""
    survey = quality.Survey(config)
    pieces = sorted(pieces, key=lambda piece: -piece.file.size)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("Measuring", total=sum(piece.file.size for piece in pieces))
        if min(workers, len(pieces)) <= 1:
            for piece in pieces:
                survey.merge(piece.measure(config, lambda size: bar.update(task, advance=size)))
            return survey
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            waiting = {pool.submit(piece.measure, config): piece.file.size for piece in pieces}
            for done in concurrent.futures.as_completed(waiting):
                bar.update(task, advance=waiting.pop(done))
                survey.merge(done.result())
    return survey


def table(report: quality.Report) -> Table:
    """The numbers over all sources; the page has them for each source."""
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
