"""Rows that hold responses as segments, and what a model says of each response alone.

The judges read one response at a time, with its prompt in a row of its own and its logits in
memory: no segments, no padding, no library code but the model's.
"""

import dataclasses
import functools
import math

import jax
import numpy as np

from llmjax import models

S, V = 24, 32
CONFIG = models.llama(
    vocab_size=V,
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    mlp_dim=16,
    dtype="float64",
    head=models.Head("lm", cap=3.0),
)
# How many responses each row has: of the last but one nothing can be learned, the last is padding.
COUNTS = (3, 2, 3, 2, 2, 3, 1, 0)


def examples(counts=COUNTS, seed=0) -> list[list[tuple[list[int], list[int]]]]:
    """For each row, (prompt, response) pairs of unequal lengths, best first."""
    random = np.random.RandomState(seed)
    rows = []
    for count in counts:
        prompt = random.randint(1, V, random.randint(1, 4)).tolist()
        sizes = random.randint(1, 5, count)
        rows.append([(prompt, random.randint(1, V, size).tolist()) for size in sizes])
    return rows


def as_rows(rows, side="right") -> dict[str, np.ndarray]:
    """The batch, padded on one side."""
    names = ("tokens", "segment_ids", "positions")
    batch = {name: np.zeros((len(rows), S), np.int32) for name in names}
    batch["targets"] = np.full((len(rows), S), -1, np.int32)
    for i, row in enumerate(rows):
        at = S - sum(len(prompt) + len(response) for prompt, response in row)
        at = at if side == "left" else 0
        for number, (prompt, response) in enumerate(row, 1):
            text = prompt + response
            place = slice(at, at + len(text))
            batch["tokens"][i, place] = text
            batch["segment_ids"][i, place] = number
            batch["positions"][i, place] = np.arange(len(text))
            before = at + len(prompt) - 1
            batch["targets"][i, before : before + len(response)] = response
            at += len(text)
    return batch


def with_head(kind) -> models.ModelConfig:
    return dataclasses.replace(CONFIG, head=models.Head(kind))


def wide(tree):
    return jax.tree.map(np.float64, tree)


@functools.partial(jax.jit, static_argnums=2)
def _hidden(params, tokens, config):
    return models.apply(params, tokens, config)[0]


def states_alone(params, rows, config) -> list[list[np.ndarray]]:
    """Hidden states [tokens, D] of each prompt with its response, in a row of its own.

    What comes behind them in that row, a causal model does not see.
    """
    texts = [prompt + response for row in rows for prompt, response in row]
    tokens = np.full((len(texts), max(map(len, texts))), 7, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    hidden = np.asarray(_hidden(params, tokens, config))
    found = iter([x[: len(text)] for x, text in zip(hidden, texts, strict=True)])
    return [[next(found) for _ in row] for row in rows]


def tokens_alone(params, rows, temperature=1.0) -> list[list[list[tuple[float, float]]]]:
    """(log P, entropy) at each token of each response, one after the other."""
    states, table, cap = states_alone(params, rows, CONFIG), params["head"], CONFIG.head.cap

    def one(states, prompt, response):
        found = []
        for place, token in enumerate(response, len(prompt) - 1):
            logits = cap * np.tanh(table @ states[place] / cap) / temperature
            logs = logits - math.log(np.exp(logits).sum())
            found.append((logs[token], -(np.exp(logs) * logs).sum()))
        return found

    return [
        [one(x, *example) for x, example in zip(*pair, strict=True)]
        for pair in zip(states, rows, strict=True)
    ]


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope(function, x: np.ndarray, step=1e-6) -> np.ndarray:
    """Central differences of a function of an array."""
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        found[index] = (function(up) - function(down)) / (2 * step)
    return found
