#!/usr/bin/env python3
"""Trains the same small model on equally many tokens of raw and of cleaned text.

    tools/judge_cleaning_pays.py --out=results            # about 15 minutes on two idle cores
    tools/judge_cleaning_pays.py --out=results --quick    # two, to check that it works

The raw text resembles a crawl: Wikipedia's prose, spam mails with their headers, and descriptions
of Debian packages, each six times, half of the copies with some words changed (tools/corpora.py
fetches all of it). Cleaning is the pipeline of `experiments.prepare` with its standard steps, which
know nothing of these sources. Both models see equally many tokens of one tokenizer, trained on the
raw text; the smaller text is repeated. They are evaluated by bits per byte on held-out Wikipedia
articles.

Writes results.json, results.md, pays.svg and quality.html, the report on cleaning.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from llmjax import data, models, objectives, optim, train
from llmjax.data import documents, quality, tokenizer
from llmjax.data.cleaning import pipeline
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.quality import files
from llmjax.evaluation import summary
from llmjax.pages import charts, drawing
from tools import corpora, curves

CHUNK = 3000  # approximate characters of a document cut from an article
HELD_OUT, HEAD = 10, 8000  # every n-th article is held out, and truncated to these characters
DESCRIPTIONS, COPIES, CHANGED = 500, 6, 0.01
SPAM_BYTES = 2_500_000
KINDS = ("raw", "cleaned")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The model and its training, the same for both texts."""

    vocab_size: int = 2048
    num_layers: int = 3
    embed_dim: int = 128
    num_heads: int = 4
    length: int = 128
    batch_size: int = 16
    steps: int = 500
    evaluations: int = 8
    learning_rate: float = 2e-3


QUICK = Settings(512, 1, 32, 2, 32, 4, steps=20, evaluations=2)


def write_raw(folder: pathlib.Path, corpora_folder: pathlib.Path | None) -> list[str]:
    """Writes the raw text, one file per source, and returns the held-out articles."""
    rng = random.Random(0)
    articles = list(corpora.read(corpora.fetch("wiki", corpora_folder)))
    held_out = [article["text"][:HEAD] for article in articles[::HELD_OUT]]
    training = [a for place, a in enumerate(articles) if place % HELD_OUT]
    texts = {
        "wiki": [chunk for article in training for chunk in chunks(article["text"])],
        "spam": list(_spam(rng, corpora_folder)),
        "descriptions": list(_descriptions(rng, corpora_folder)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in texts.items():
        rng.shuffle(found)
        lines = (json.dumps({"text": text}) + "\n" for text in found)
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return held_out


def chunks(text: str) -> Iterator[str]:
    """An article's paragraphs, joined to documents of about `CHUNK` characters."""
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        if sum(map(len, held)) >= CHUNK:
            yield "\n\n".join(held)
            held = []
    if held:
        yield "\n\n".join(held)


def _spam(rng: random.Random, folder: pathlib.Path | None) -> Iterator[str]:
    mails = [m["text"] for m in corpora.read(corpora.fetch("mails", folder)) if "/spam" in m["id"]]
    rng.shuffle(mails)
    size = 0
    for mail in mails:
        size += len(mail.encode())
        if size > SPAM_BYTES:
            return
        yield mail


def _descriptions(rng: random.Random, folder: pathlib.Path | None) -> Iterator[str]:
    """Some descriptions, each `COPIES` times, half of them with words swapped."""
    records = corpora.read(corpora.fetch("debian", folder), "en")
    long = [record["text"] for record in records if len(record["text"].split()) >= 70]
    for text in rng.sample(long, DESCRIPTIONS):
        for copy in range(COPIES):
            words = text.split(" ")
            for _ in range(round(CHANGED * len(words)) if copy % 2 else 0):
                a, b = rng.randrange(len(words)), rng.randrange(len(words))
                words[a], words[b] = words[b], words[a]
            yield " ".join(words)


def clean(raw: pathlib.Path, folder: pathlib.Path, steps: Sequence[str]) -> dict[str, list[str]]:
    """The raw and cleaned texts; also writes the report on cleaning."""
    sources = tuple(data.Source(path.stem, str(path)) for path in sorted(raw.glob("*.jsonl")))
    settings = data.DataConfig(sources=sources, cleaning=CleaningConfig(steps=tuple(steps)))
    inputs = {source.name: documents.find_files(source) for source in sources}
    pipeline.clean_sources(settings, inputs, folder)
    pieces, names = files.prepared(folder)
    raw_pieces, _ = files.find([source.path for source in sources])
    survey = quality.Survey()
    for piece in [*raw_pieces, *pieces]:
        survey.merge(piece.measure())
    quality.write(survey.report(names), folder)
    read = [item for s in sources for f in inputs[s.name] for item in documents.read(f, s)]
    return {
        "raw": [item.text for item in read if not isinstance(item, documents.Rejected)],
        "cleaned": [document.text for document in pipeline.read_cleaned(folder)],
    }


@dataclasses.dataclass(frozen=True)
class Task:
    """The tokenized texts.

    Attributes:
        settings: settings of model and training.
        encoder: the tokenizer of both kinds.
        texts: token lists of each kind's documents.
        held_out: int32 [N], the held-out text.
        held_out_bytes: its length.
    """

    settings: Settings
    encoder: tokenizer.Tokenizer
    texts: dict[str, list[list[int]]]
    held_out: np.ndarray
    held_out_bytes: int

    @classmethod
    def of(cls, texts: dict[str, list[str]], held_out: list[str], settings: Settings) -> "Task":
        """Trains the tokenizer on the raw text and encodes everything."""
        config = data.TokenizerConfig(vocab_size=settings.vocab_size)
        encoder = tokenizer.train(config, texts["raw"])
        end = [encoder.eos_id]
        encoded = {
            kind: [[*ids, *end] for ids in encoder.encode_batch(found, 2)]
            for kind, found in texts.items()
        }
        ids = [token for ids in encoder.encode_batch(held_out, 2) for token in [*ids, *end]]
        size = sum(len(text.encode()) for text in held_out)
        return cls(settings, encoder, encoded, np.array(ids, np.int32), size)

    def batches(self, kind: str, seed: int) -> Iterator[np.ndarray]:
        """Windows [B, S + 1] of the documents, shuffled by the seed in every pass."""
        rng = np.random.default_rng(seed)
        S, B = self.settings.length, self.settings.batch_size
        documents_ = self.texts[kind]
        rows: list[np.ndarray] = []
        while True:
            order = rng.permutation(len(documents_))
            tokens = np.concatenate([np.array(documents_[i], np.int32) for i in order])
            count = (len(tokens) - 1) // S
            places = rng.permutation(count)[:, None] * S + np.arange(S + 1)
            rows.extend(tokens[places])
            while len(rows) >= B:
                yield np.stack(rows[:B])
                rows = rows[B:]


def run(task: Task, kind: str, seed: int, say: Callable[[int, float], None]) -> dict[int, float]:
    """Bits per byte on the held-out text by step."""
    settings = task.settings
    model = models.llama(
        vocab_size=task.encoder.vocab_size,
        num_layers=settings.num_layers,
        embed_dim=settings.embed_dim,
        num_heads=settings.num_heads,
    )
    spec = models.spec(model)
    rate = optim.OptimizerConfig(
        learning_rate=settings.learning_rate, warmup_steps=settings.steps // 10
    )
    optimizer = optim.make(rate, spec, settings.steps)
    state = train.init_state(jax.random.key(seed), spec, optimizer)
    loss = objectives.clm(model)
    step = train.make_step(loss, optimizer)
    score = jax.jit(lambda params, batch: loss(params, batch, None)[0].sum)
    found = {}
    every = settings.steps // settings.evaluations
    for number, rows in enumerate(task.batches(kind, seed), start=1):
        state, _ = step(state, _batch(rows))
        if number % every == 0:
            nats = sum(float(score(state.params, batch)) for batch in _held_out(task))
            found[number] = nats / np.log(2) / task.held_out_bytes
            say(number, found[number])
        if number == settings.steps:
            return found
    raise AssertionError("batches never end")


def _held_out(task: Task) -> Iterator[dict[str, jax.Array]]:
    """The held-out text in adjacent windows [B, S]; padding has no targets."""
    S, B = task.settings.length, 4 * task.settings.batch_size
    targets = task.held_out[1:]
    rows = -(-len(targets) // (S * B)) * B
    tokens = np.zeros(rows * S, np.int32)
    tokens[: len(targets)] = task.held_out[:-1]
    padded = np.full(rows * S, -1, np.int32)
    padded[: len(targets)] = targets
    for at in range(0, rows, B):
        part = slice(at * S, (at + B) * S)
        both = {"tokens": tokens[part], "targets": padded[part]}
        yield {name: jnp.asarray(values.reshape(B, S)) for name, values in both.items()}


def _batch(rows: np.ndarray) -> dict[str, jax.Array]:
    return {"tokens": jnp.asarray(rows[:, :-1]), "targets": jnp.asarray(rows[:, 1:])}


def results_of(task: Task, seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Makes all runs, alternating between both kinds for each seed."""
    runs: dict[str, list[dict[int, float]]] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        for kind in KINDS:

            def tell(step: int, bits: float, seed: int = seed, kind: str = kind) -> None:
                say(f"seed {seed}, {kind}: step {step}: {bits:.4f} bits per byte")

            runs[kind].append(run(task, kind, seed, tell))
    tokens = task.settings.steps * task.settings.batch_size * task.settings.length
    return {
        "settings": dataclasses.asdict(task.settings),
        "tokens": tokens,
        "held_out_bytes": task.held_out_bytes,
        "corpus_tokens": {kind: sum(map(len, found)) for kind, found in task.texts.items()},
        "documents": {kind: len(found) for kind, found in task.texts.items()},
        "runs": runs,
    }


def markdown(results: dict[str, Any]) -> str:
    """The table, and the difference between both kinds."""
    final = {kind: [list(run.values())[-1] for run in results["runs"][kind]] for kind in KINDS}
    lines = ["| text | documents | tokens | passes | bits per byte, mean (95 %) |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for kind in KINDS:
        own, count = results["corpus_tokens"][kind], results["documents"][kind]
        found = summary.summarize(final[kind])
        lines.append(
            f"| {kind} | {count:,} | {own:,} | {results['tokens'] / own:.2f} | "
            f"{found.mean:.4f} ({found.low:.4f} to {found.high:.4f}) |"
        )
    gap = summary.compare(final["raw"], final["cleaned"])
    of = gap.difference
    verdict = "Cleaning pays" if of.low > 0 else "No clear gain"
    lines.append("")
    lines.append(
        f"{verdict}: {of.mean:.4f} bits per byte less ({of.low:.4f} to {of.high:.4f}, paired by "
        f"seed, {of.count} seeds, p = {gap.p:.2g}) after {results['tokens']:,} tokens each, on "
        f"{results['held_out_bytes']:,} bytes of held-out articles."
    )
    return "\n".join(lines) + "\n"


def chart(results: dict[str, Any]) -> charts.Plot:
    """Bits per byte by tokens: means over seeds within their 95 % intervals."""
    a_step = results["settings"]["batch_size"] * results["settings"]["length"]
    drawn = []
    roles: tuple[charts.Role, ...] = ("second", "first")
    for kind, role in zip(KINDS, roles, strict=True):
        runs = results["runs"][kind]
        tokens = [step * a_step / 1e6 for step in runs[0]]
        bits = [list(run.values()) for run in runs]
        drawn.append(curves.mean(f"{kind} text", tokens, bits, role))
    title = "Held-out articles (bits per byte)"
    return charts.Plot("pays", title, tuple(drawn), x="million tokens")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _options(arguments)
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    try:
        held_out = write_raw(options.out / "raw", options.corpora)
    except corpora.UnavailableError as error:
        sys.exit(f"judge_cleaning_pays: {error}")
    texts = clean(options.out / "raw", options.out, options.steps)
    say(", ".join(f"{kind}: {len(found):,} documents" for kind, found in texts.items()))
    task = Task.of(texts, held_out, QUICK if options.quick else Settings())
    results = results_of(task, options.seeds, say)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "results.md").write_text(markdown(results))
    drawing.write(chart(results), options.out / "pays.svg")
    print(markdown(results))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the results")
    parser.add_argument("--corpora", type=pathlib.Path, help="folder of fetched texts")
    parser.add_argument("--steps", nargs="+", default=["standard"], help="of cleaning")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, a few steps")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds={options.seeds}: an interval needs 2 or more")
    return options


if __name__ == "__main__":
    main()
