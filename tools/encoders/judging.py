"""Evaluates an encoder on a labelled set by a linear probe and by fine-tuning."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmjax import models, objectives, optim, train
from tools.encoders.corpus import SPLITS, Split
from tools.encoders.data import Data, Rows
from tools.encoders.pretraining import Settings, encoder_config

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of the probe; chosen on the validation split
PROBE_STEPS = 400
PROBE_RATE = 0.02
ROWS = 256  # batch size of inference
FINE_TUNING_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy on held-out documents, overall and balanced (the mean over labels)."""

    accuracy: float
    balanced: float

    @classmethod
    def of(cls, guesses: np.ndarray, labels: np.ndarray) -> "Score":
        """The score of guesses [N] for labels [N]."""
        right = guesses == labels
        shares = [right[labels == label].mean() for label in np.unique(labels)]
        return cls(float(right.mean()), float(np.mean(shares)))


class Judge:
    """Evaluates encoders; compiled once for all encoders of one size.

    Args:
        data: data with the labelled set.
        settings: settings of the encoder and of fine-tuning.
    """

    def __init__(self, data: Data, settings: Settings) -> None:
        config = models.with_head(
            encoder_config(data, settings), "classification", labels=len(data.topics)
        )
        config = dataclasses.replace(config, dropout=models.Dropout(hidden=0.1, classifier=0.1))
        self._data, self._settings, self._config = data, settings, config
        self._rows: dict[Split, Rows] = {
            split: data.labelled(split, settings.length) for split in SPLITS
        }
        spec = models.spec(config)
        batch = min(FINE_TUNING_ROWS, len(self._rows["train"]["labels"]))
        steps = max(2, settings.epochs * (len(self._rows["train"]["labels"]) // batch))
        self._steps, self._batch = steps, batch
        optimizer = optim.make(
            optim.OptimizerConfig(
                learning_rate=settings.fine_tuning_rate,
                schedule="linear",
                warmup_steps=max(1, steps // 10),
                final_share=0.0,
                beta2=0.999,
                weight_decay=0.01,
            ),
            spec,
            steps,
        )
        self._start = jax.jit(functools.partial(train.init_state, spec=spec, optimizer=optimizer))
        self._step = train.make_step(objectives.classification(config), optimizer)
        self._features = jax.jit(functools.partial(_features, config=config))
        self._logits = jax.jit(functools.partial(_logits, config=config))

    def probe(self, encoder: Any, split: Split = "test") -> Score:
        """Scores logistic regression on the mean of the frozen encoder's last hidden states."""
        parts = {
            name: self._read(lambda batch: self._features(encoder, batch), rows)
            for name, rows in self._rows.items()
        }
        mean, deviation = parts["train"].mean(axis=0), parts["train"].std(axis=0) + 1e-6
        scaled = {name: (part - mean) / deviation for name, part in parts.items()}
        return self._regress(scaled, split)

    def bag_of_tokens(self) -> Score:
        """Scores logistic regression on token occurrence weighted by rarity, without an encoder."""
        parts = {name: self._data.counts(name, self._settings.length) for name in self._rows}
        documents = len(parts["train"])
        rareness = np.log((1 + documents) / (1 + (parts["train"] > 0).sum(axis=0)))
        weighted = {name: np.log1p(part) * rareness for name, part in parts.items()}
        # The norm that standardized features of one row in a hundred would have.
        scaled = {
            name: 10 * part / (np.linalg.norm(part, axis=1, keepdims=True) + 1e-6)
            for name, part in weighted.items()
        }
        return self._regress(scaled, "test")

    def majority(self) -> Score:
        """Scores guessing the most common label."""
        commonest = np.bincount(self._rows["train"]["labels"]).argmax()
        labels = self._rows["test"]["labels"]
        return Score.of(np.full_like(labels, commonest), labels)

    def fine_tune(self, encoder: Any, seed: int) -> Score:
        """Scores the encoder fine-tuned with a new head, with the same steps for every encoder."""
        state = self._start(jax.random.key(seed))
        # The step donates its state, so the encoder is copied.
        params = jax.tree.map(jnp.copy, encoder) | {"head": state.params["head"]}
        state = dataclasses.replace(state, params=params)
        for batch in self._shuffled(seed):
            state, _ = self._step(state, jax.tree.map(jnp.asarray, batch))
        rows = self._rows["test"]
        logits = self._read(lambda batch: self._logits(state.params, batch), rows)
        return Score.of(logits.argmax(axis=1), rows["labels"])

    def _regress(self, features: dict[Split, np.ndarray], split: Split) -> Score:
        labels = {name: rows["labels"] for name, rows in self._rows.items()}
        weights, biases = _regressions(
            jnp.asarray(features["train"], jnp.float32),
            jnp.asarray(labels["train"]),
            len(self._data.topics),
        )
        weights, biases = np.asarray(weights), np.asarray(biases)

        def guess(name: Split, index: int) -> np.ndarray:
            return (features[name] @ weights[index] + biases[index]).argmax(axis=1)

        right = [
            (guess("validation", i) == labels["validation"]).mean() for i in range(len(biases))
        ]
        return Score.of(guess(split, int(np.argmax(right))), labels[split])

    def _shuffled(self, seed: int) -> Iterator[Rows]:
        draws, order = np.random.default_rng(seed), np.zeros(0, int)
        rows = self._rows["train"]
        for _ in range(self._steps):
            if len(order) < self._batch:
                order = draws.permutation(len(rows["labels"]))
            chosen, order = order[: self._batch], order[self._batch :]
            yield {name: array[chosen] for name, array in rows.items()}

    def _read(self, function, rows: Rows) -> np.ndarray:
        """Applies `function` to batches of one size and concatenates the results."""
        count = len(rows["labels"])
        parts = []
        for start in range(0, count, ROWS):
            chosen = np.arange(start, start + ROWS) % count
            batch = {name: jnp.asarray(rows[name][chosen]) for name in ("tokens", "segment_ids")}
            parts.append(function(batch))
        return np.concatenate([np.asarray(part) for part in parts])[:count]


def _features(encoder, batch, config) -> jax.Array:
    """The mean of a row's hidden states, float32 [B, D]."""
    there = batch["segment_ids"]
    hidden, _ = models.apply(encoder, batch["tokens"], config, segment_ids=there)
    weights = (there / jnp.sum(there, axis=1, keepdims=True)).astype(jnp.float32)
    return jnp.einsum("bsd,bs->bd", hidden.astype(jnp.float32), weights)


def _logits(params, batch, config) -> jax.Array:
    there = batch["segment_ids"]
    hidden, _ = models.apply(params, batch["tokens"], config, segment_ids=there)
    return models.logits(params, hidden, config, segment_ids=there)


@functools.partial(jax.jit, static_argnames="count")
def _regressions(features, labels, count) -> tuple[jax.Array, jax.Array]:
    """Weights [P, D, N] and biases [P, N] of N labels, for P penalties on the squared weights."""
    rate = optax.cosine_decay_schedule(PROBE_RATE, PROBE_STEPS)
    optimizer = optax.adam(rate)

    def fit(penalty):
        def loss(params):
            weights, biases = params
            logits = features @ weights + biases
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses) + penalty * jnp.sum(weights**2)

        def one(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.zeros((features.shape[1], count)), jnp.zeros((count,))
        (params, _), _ = jax.lax.scan(one, (params, optimizer.init(params)), length=PROBE_STEPS)
        return params

    return jax.vmap(fit)(jnp.array(PENALTIES))
