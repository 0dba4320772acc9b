"""The workloads in llmjax. Each `build` returns a function that does one turn to its end."""

import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipe import Recipe
from llmjax import data, models, objectives, optim, sampling, train
from llmjax import spec as specs
from tools.benchmark.workloads import Workload

CORPUS_BYTES = 16 << 20


def build(workload: Workload) -> Callable[[], None]:
    """The turn of a workload: compiled by its first call, finished when it returns."""
    programs = {"train": _train, "eval": _eval, "decode": _decode, "data": _data}
    return programs[workload.kind](workload)


def matmul(size: int) -> Callable[[], None]:
    """One float32 product of two square matrices."""
    product = jax.jit(jnp.matmul)
    left, right = jnp.ones((size, size)), jnp.ones((size, size))
    return lambda: jax.block_until_ready(product(left, right))


def versions() -> dict[str, str]:
    """Of what a figure depends on."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}


def device() -> str:
    """What jax computes on."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"


def _train(workload: Workload) -> Callable[[], None]:
    recipe = workload.settings
    spec = models.spec(recipe.model)
    optimizer = optim.make(recipe.optimizer, spec, recipe.steps)
    state = train.init_state(jax.random.key(recipe.seed), spec, optimizer)
    step = train.make_step(objectives.clm(recipe.model), optimizer)
    batch = _random_batch(recipe)

    def turn() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return turn


def _eval(workload: Workload) -> Callable[[], None]:
    recipe = workload.settings
    params = specs.init(jax.random.key(recipe.seed), models.spec(recipe.model))
    loss = objectives.clm(recipe.model)
    score = jax.jit(lambda params, batch: loss(params, batch, None))
    batch = _random_batch(recipe)
    return lambda: jax.block_until_ready(score(params, batch))


def _decode(workload: Workload) -> Callable[[], None]:
    recipe = workload.settings
    key = jax.random.key(recipe.seed)
    params = models.for_decoding(specs.init(key, models.spec(recipe.model)), recipe.model)
    shape = (workload.decode_rows, workload.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, recipe.model.vocab_size, shape)
    greedy = sampling.SamplerConfig(temperature=0.0)

    def turn() -> None:
        written = sampling.generate(
            params,
            prompts,
            recipe.model,
            key,
            max_new_tokens=workload.new_tokens,
            sampler=greedy,
        )
        assert written.lengths.sum() == workload.tokens

    return turn


def _data(workload: Workload) -> Callable[[], None]:
    recipe = workload.settings
    folder = tempfile.TemporaryDirectory()
    corpus = pathlib.Path(folder.name, "corpus.jsonl")
    _write_corpus(corpus)
    source = data.Source("words", str(corpus))
    data.prepare(data.DataConfig((source,), data.TokenizerConfig("bytes")), folder.name)
    batches = iter(
        data.batches(
            folder.name,
            split="train",
            batch_size=recipe.batch_size,
            sequence_length=recipe.sequence_length,
        )
    )

    def turn(folder: Any = folder) -> None:  # the folder lives as long as the function
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


def _random_batch(recipe: Recipe) -> dict[str, jax.Array]:
    rows, length = recipe.batch_size, recipe.sequence_length
    drawn = np.random.default_rng(0).integers(0, recipe.model.vocab_size, (rows, length + 1))
    tokens = jnp.asarray(drawn, jnp.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
