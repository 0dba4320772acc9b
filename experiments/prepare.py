"""Prepares text for training: cleans it, trains a tokenizer and writes tokenized shards.

    python -m experiments.prepare --recipe=tiny --output=data/tiny
    python -m experiments.prepare --recipe=chapter_mixture --output=data/mixture
    python -m experiments.prepare --recipe=gpt2_small --output=data/web \
        --data.sources=name=web,path=crawl --data.cleaning.steps=standard --workers=16

`experiments.pretrain` does the same if needed; prepare separately to train several models on the
data (`--data.directory=data/mixture`). Running it again with the same text and settings does
nothing; after a kill, the same command continues. Rejected text is in OUTPUT/rejected.
"""

import pathlib

from absl import flags as absl_flags
from rich.console import Console
from rich.table import Table

from experiments import flags
from experiments.recipes import RECIPES
from experiments.tasks import pretraining
from llmjax import data
from llmjax.data.cleaning import engines, pipeline
from llmjax.data.cleaning.counts import Counts

OUTPUT = absl_flags.DEFINE_string("output", None, "Folder for tokenizer, shards and manifest.")
ENGINE = absl_flags.DEFINE_enum(
    "engine",
    "local",
    ["local", "ray", "slurm"],
    "Where text is cleaned: in local processes; on a Ray cluster (RAY_ADDRESS, or a local one); "
    "or as Slurm jobs, for which the output folder must be visible on all nodes.",
)
WORKERS = absl_flags.DEFINE_integer(
    "workers", 0, "Parts of the text that are cleaned at once; 0 for as many as possible."
)
PARTITION = absl_flags.DEFINE_string("partition", "", "Slurm's partition.")
flags.define(RECIPES)


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    settings = flags.resolve()
    output = OUTPUT.value or settings.data.directory
    if not output:
        raise flags.FlagError("--output is missing: name a folder to write to")
    directory = pathlib.Path(output)
    manifest = pretraining.prepare(settings, directory, _engine())
    console = Console()
    if settings.data.cleaning.steps:
        for source, counts in pipeline.load_counts(directory).items():
            console.print(_cleaned(source, counts))
    console.print(_prepared(manifest))


def _engine() -> engines.Engine:
    if PARTITION.value and ENGINE.value != "slurm":
        raise flags.FlagError("--partition is for --engine=slurm: leave it out")
    if ENGINE.value == "ray":
        return engines.Ray(WORKERS.value)
    if ENGINE.value == "slurm":
        if not PARTITION.value:
            raise flags.FlagError("--engine=slurm needs --partition: see sinfo for a list")
        return engines.Slurm(PARTITION.value, workers=WORKERS.value)
    return engines.Local(WORKERS.value)


def _cleaned(source: str, counts: Counts) -> Table:
    """The results of each cleaning step, with reasons for rejection."""
    table = Table(title=f"Cleaned: {source}", title_justify="left")
    table.add_column("step", no_wrap=True)
    for name in ("documents", "kept", "rejected", "documents/s"):
        table.add_column(name, justify="right")
    table.add_column("reasons")
    for row in counts.rows():
        reasons = sorted(row.rejected.items(), key=lambda found: -found[1])
        table.add_row(
            row.step,
            *(f"{n:,}" for n in (row.documents, row.kept, row.documents - row.kept)),
            f"{row.documents / row.seconds:,.0f}" if row.seconds else "",
            ", ".join(f"{count:,} {reason}" for reason, count in reasons),
        )
    lost = counts.documents - counts.kept
    table.add_row("all", *(f"{n:,}" for n in (counts.documents, counts.kept, lost)), "", "")
    return table


def _prepared(manifest: data.Manifest) -> Table:
    table = Table(title="Prepared", title_justify="left")
    table.add_column("source")
    table.add_column("split")
    for name in ("documents", "tokens", "bytes", "bytes/token"):
        table.add_column(name, justify="right")
    for source in manifest.sources:
        for split in data.SPLITS:
            counts = source.split(split)
            rate = counts.bytes / max(counts.tokens, 1)
            numbers = (counts.documents, counts.tokens, counts.bytes)
            table.add_row(source.name, split, *(f"{n:,}" for n in numbers), f"{rate:.2f}")
    return table


if __name__ == "__main__":
    flags.run(main)
