"""The whole process, from installed packages to a model that chats.

    ./tools/quickstart
    python -m experiments.quickstart --run_dir=runs/quickstart --steps=200

Cleans 12 million characters of human conversation with a quality report, trains a tokenizer,
pretrains a small decoder for about four minutes on two CPU cores, compares it on held-out dialogues
with xz and a 6-gram model, loads it from its checkpoint and generates answers. Then aligns it, in
about the same time: fine-tunes it on questions with answers, trains a reward model on pairs of
replies, and improves its replies by PPO (`experiments.alignment`); --noalign skips this. Running it
again resumes it, or finds the work done.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags as absl_flags
from rich.console import Console
from rich.table import Table

from experiments import alignment, flags, measuring, recipe, runs, training
from experiments.recipes import RECIPES
from llmjax import data, sampling
from llmjax.data import cleaning, documents
from llmjax.data.cleaning import pipeline
from llmjax.data.prepare import split_of
from llmjax.evaluation import baselines
from llmjax.train.report import write_report

ALIGN = absl_flags.DEFINE_bool(
    "align", True, "Continue with fine-tuning, reward model and PPO, if the corpus is chitchat."
)
RUN_DIR = absl_flags.DEFINE_string("run_dir", "runs/quickstart", "Folder of the run.")
flags.define(RECIPES, default="quickstart")

OPENINGS = (
    ("Hi! What did you do today?",),
    ("Do you like music?", "Yes! I listen to it all the time.", "What kind?"),
    ("I have an exam tomorrow and I am so nervous.",),
)


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    settings = flags.resolve()
    if settings.objective != "clm":
        raise flags.FlagError(
            f"--recipe={settings.name}: objective={settings.objective} cannot generate answers; "
            "choose a recipe that predicts next tokens, or use experiments.pretrain"
        )
    run_dir = pathlib.Path(RUN_DIR.value)
    options = training.Options(command=flags.command_line())
    training.run(settings, run_dir, options)
    console = Console()
    directory = runs.task_of(settings, run_dir).directory()
    if settings.data.cleaning.names:
        measured, page = measuring.report([str(directory)], run_dir / "quality")
        console.print(measuring.table(measured))
        console.print(f"report: {page}\n", markup=False)
    with jax.set_mesh(runs.task_of(settings, run_dir).make_mesh()):
        model = runs.load(run_dir)
        compared = compare(model, run_dir)
        console.print(_table(compared))
        for turns, reply in zip(OPENINGS, replies(model), strict=True):
            console.print(_dialogue(turns, reply))
    if ALIGN.value and settings.corpus == "chitchat":
        found = alignment.align(run_dir, options)
        console.print(alignment.said(found))
        console.print(alignment.judged(found), markup=False)
        run_dir = run_dir / "friendlier"
    console.print(f"\nchat:   python -m experiments.generate --run_dir={run_dir}", markup=False)
    console.print(f"report: {write_report(run_dir)}", markup=False)


def compare(model: runs.TrainedModel, run_dir: pathlib.Path) -> dict[str, float]:
    """Bits per byte on the held-out text, for the model, xz and a 6-gram model.

    The result is written to RUN_DIR/comparison.json, for the report.
    """
    directory = model.task.directory()
    found = runs.evaluate_model(model, directory, model.recipe.batch_size)
    texts = {name: bytearray() for name in data.SPLITS}
    config = recipe.data_config(model.recipe, directory / "corpus")
    for document in _documents(config, directory):
        text = document.text.encode()
        texts[split_of(text, config.validation_share)] += text
    train, held_out = bytes(texts["train"]), bytes(texts["validation"])
    xz = baselines.xz_bits_per_byte(train, held_out)
    compared = {
        "this model": found["bits_per_byte"],
        "character 6-gram, Kneser-Ney": baselines.kneser_ney_bits_per_byte(train, held_out),
        "xz -9, after the training text": xz.primed,
        "xz -9": xz.alone,
    }
    (run_dir / "comparison.json").write_text(json.dumps(compared, indent=1), "utf-8")
    return compared


def _documents(config: data.DataConfig, directory: pathlib.Path) -> Iterator[cleaning.Document]:
    """The documents that were tokenized."""
    if config.cleaning.names:
        yield from pipeline.read_cleaned(directory)
        return
    for source in config.sources:
        for file in documents.find_files(source):
            found = documents.read(file, source)
            yield from (item for item in found if isinstance(item, cleaning.Document))


def replies(model: runs.TrainedModel) -> list[str]:
    """The model's answers to each of `OPENINGS`."""
    tokenizer, config = model.tokenizer, model.config
    prompts = [
        [*tokenizer.opening, *tokenizer.encode(data.chat_prompt(turns))] for turns in OPENINGS
    ]
    stops: dict[str, Any] = {"stop_tokens": tokenizer.stop_ids, "stop_texts": ("\n",)}
    written = sampling.generate(
        model.params,
        prompts,
        config,
        jax.random.key(0),
        max_new_tokens=48,
        sampler=sampling.SamplerConfig(temperature=0.7, top_p=0.9),
        tokenizer=tokenizer,
        **stops,
    )
    return [
        sampling.text_of(tokens[:length].tolist(), tokenizer, **stops).strip()
        for tokens, length in zip(written.tokens, written.lengths, strict=True)
    ]


def _table(compared: dict[str, float]) -> Table:
    table = Table(title="Bits per byte on held-out text (lower is better)", title_justify="left")
    table.add_column("model")
    table.add_column("bits per byte", justify="right")
    for name, value in compared.items():
        table.add_row(name, f"{value:.3f}")
    return table


def _dialogue(turns: tuple[str, ...], reply: str) -> str:
    lines = [*turns, reply]
    return "\n" + "\n".join(f"{data.SPEAKERS[i % 2]} {line}" for i, line in enumerate(lines))


if __name__ == "__main__":
    flags.run(main)
