"""The workloads in llmjax. Each builder returns a function that runs one turn to completion."""

import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import models, optim, train
from llmjax import spec as specs
from tools.benchmark.settings import Settings
from tools.benchmark.workloads import LORA, Workload

# Runs one unit of work to completion and returns its loss, if any.
Turn = Callable[[], float | None]

CORPUS_BYTES = 16 << 20


def build(workload: Workload) -> Turn:
    """The workload's turn: compiled by its first call, finished when it returns."""
    train.trim_after_compiling()
    programs = {"train": _train, "eval": _eval, "decode": _decode, "data": _data, "lora": _lora}
    return programs.get(workload.kind, _reinforce)(workload)


def matmul(size: int) -> Callable[[], None]:
    """One product of two square matrices: float32, or bfloat16 on an accelerator."""
    product = jax.jit(jnp.matmul)
    dtype = jnp.bfloat16 if accelerated() else jnp.float32
    left, right = jnp.ones((size, size), dtype), jnp.ones((size, size), dtype)

    def turn() -> None:
        jax.block_until_ready(product(left, right))

    return turn


def versions() -> dict[str, str]:
    """Versions of the libraries that affect the figures."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}


def accelerated() -> bool:
    """Whether jax runs on an accelerator."""
    return jax.default_backend() != "cpu"


def device() -> str:
    """The device that jax runs on."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"


def peak_device_memory_mb() -> float | None:
    """Peak memory of arrays and programs on the first device; None on a CPU."""
    statistics = jax.devices()[0].memory_stats() if accelerated() else None
    return statistics["peak_bytes_in_use"] / (1 << 20) if statistics else None


def _train(workload: Workload) -> Turn:
    settings = workload.settings
    spec = settings.spec
    optimizer = optim.make(settings.optimizer, spec, settings.steps)
    state = train.init_state(jax.random.key(settings.seed), spec, optimizer)
    step = train.make_step(settings.loss, optimizer)
    batch = _random_batch(settings)

    def turn() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return turn


def _lora(workload: Workload) -> Turn:
    from tools.benchmark import tuning

    settings = workload.settings
    return tuning.lora(settings, LORA, _random_batch(settings))


def _reinforce(workload: Workload) -> Turn:
    from tools.benchmark import tuning

    return tuning.reinforce(
        workload.settings,
        answers=workload.decode_rows,
        prompt_tokens=workload.prompt_tokens,
        new_tokens=workload.new_tokens,
        ppo=workload.kind == "ppo",
    )


def _eval(workload: Workload) -> Turn:
    settings = workload.settings
    params = specs.init(jax.random.key(settings.seed), settings.spec)
    loss = settings.loss
    score = jax.jit(lambda params, batch: loss(params, batch, None)[0])
    batch = _random_batch(settings)

    def turn() -> float:
        total = score(params, batch)
        return float(total.sum / total.weight)

    return turn


def _decode(workload: Workload) -> Turn:
    # As in `_data`: streaming of text imports the tokenizers.
    from llmjax import sampling

    settings = workload.settings
    key = jax.random.key(settings.seed)
    params = models.for_decoding(specs.init(key, settings.spec), settings.model)
    shape = (workload.decode_rows, workload.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, settings.model.vocab_size, shape)
    greedy = sampling.SamplerConfig(temperature=0.0)

    def turn() -> None:
        written = sampling.generate(
            params,
            prompts,
            settings.model,
            key,
            max_new_tokens=workload.new_tokens,
            sampler=greedy,
        )
        assert written.lengths.sum() == workload.tokens

    return turn


def _data(workload: Workload) -> Turn:
    # A machine that only times training may lack what reads the data.
    from llmjax import data

    settings = workload.settings
    folder = tempfile.TemporaryDirectory()
    corpus = pathlib.Path(folder.name, "corpus.jsonl")
    _write_corpus(corpus)
    source = data.Source("words", str(corpus))
    data.prepare(data.DataConfig((source,), data.TokenizerConfig("bytes")), folder.name)
    batches = iter(
        data.batches(
            folder.name,
            split="train",
            batch_size=settings.batch_size,
            sequence_length=settings.sequence_length,
        )
    )

    def turn(folder: Any = folder) -> None:  # keeps the folder alive
        for _ in range(workload.data_batches):
            next(batches)

    return turn


def _write_corpus(path: pathlib.Path) -> None:
    """Documents of random words, 2 KB on average, as JSON lines."""
    rng = np.random.default_rng(0)
    letters = rng.integers(ord("a"), ord("z") + 1, (1000, 8), np.uint8)
    words = np.array([row[: 1 + index % 8].tobytes().decode() for index, row in enumerate(letters)])
    with path.open("w") as stream:
        while stream.tell() < CORPUS_BYTES:
            text = " ".join(rng.choice(words, rng.integers(100, 700)))
            stream.write(json.dumps({"text": text}) + "\n")


def _random_batch(settings: Settings) -> dict[str, jax.Array]:
    rows, length = settings.batch_size, settings.sequence_length
    drawn = np.random.default_rng(0).integers(0, settings.model.vocab_size, (rows, length + 1))
    tokens = jnp.asarray(drawn, jnp.int32)
    if settings.objective == "clm":
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    return {"tokens": tokens[:, :-1]}
