"""Prepares text for training: trains a tokenizer and writes tokenised shards.

    python -m experiments.prepare --recipe=tiny --output=data/tiny
    python -m experiments.prepare --recipe=chapter_mixture --output=data/mixture

`experiments.pretrain` does the same by itself; prepare once to train several models on the data
(`--data.directory=data/mixture`). Running it again with the same text and settings does nothing.
"""

import pathlib

from absl import flags as absl_flags
from rich.console import Console
from rich.table import Table

from experiments import flags
from experiments.recipes import RECIPES
from experiments.tasks import pretraining
from llmjax import data

OUTPUT = absl_flags.DEFINE_string("output", None, "Folder for tokenizer, shards and manifest.")
flags.define(RECIPES)


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    settings = flags.resolve()
    output = OUTPUT.value or settings.data.directory
    if not output:
        raise flags.FlagError("--output is missing: name a folder to write to")
    manifest = pretraining.prepare(settings, pathlib.Path(output))
    Console().print(_table(manifest))


def _table(manifest: data.Manifest) -> Table:
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
