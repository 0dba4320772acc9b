"""What `judge_augmentation.py` judges by: a classifier that is tuned, and one that looks on."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import hf, models, objectives, optim, train
from llmjax.data import augmentation, load_tokenizer
from llmjax.data.augmentation.encoders import rows

BATCH, LENGTH = 16, 64  # rows of a step, and tokens that are read of a text


@dataclasses.dataclass(frozen=True)
class Review:
    """A text and its label."""

    text: str
    label: str


class Tuner:
    """Fine-tunes all parameters of an encoder with a new head, compiled once for all sets.

    Args:
        directory: of the encoder.
        labels: to tell apart.
        steps: of every run, however many texts there are.
    """

    def __init__(self, directory: str, labels: tuple[str, ...], steps: int) -> None:
        config, self._pretrained = hf.load(directory, dtype="float32")
        config = models.with_head(config, "classification", labels=len(labels))
        self._config = dataclasses.replace(
            config, dropout=models.Dropout(hidden=0.1, classifier=0.1)
        )
        self._tokenizer, self._labels, self._steps = load_tokenizer(directory), labels, steps
        spec = models.spec(self._config)
        optimizer = optim.make(optim.suggested("full", steps), spec, steps)
        self._start = jax.jit(functools.partial(train.init_state, spec=spec, optimizer=optimizer))
        self._step = train.make_step(objectives.classification(self._config), optimizer)

    def accuracy(self, reviews: Sequence[Review], test: Sequence[Review], seed: int) -> float:
        """On other texts, after tuning on some."""
        state = self._start(jax.random.key(seed))
        # The step uses up what it is given.
        params = jax.tree.map(jnp.copy, self._pretrained) | {"head": state.params["head"]}
        state = dataclasses.replace(state, params=params)
        data = self._encoded(reviews)
        draws, order = np.random.default_rng(seed), np.zeros(0, int)
        for _ in range(self._steps):
            if len(order) < BATCH:
                order = draws.permutation(len(reviews))
            chosen, order = order[:BATCH], order[BATCH:]
            batch = {name: jnp.asarray(values[chosen]) for name, values in data.items()}
            state, _ = self._step(state, batch)
        plain = dataclasses.replace(self._config, dropout=models.Dropout())
        classify = augmentation.Classifier(
            plain, state.params, self._tokenizer, self._labels, LENGTH
        )
        guesses = classify([review.text for review in test])
        return float(np.mean([g == r.label for g, r in zip(guesses, test, strict=True)]))

    def _encoded(self, reviews: Sequence[Review]) -> dict[str, np.ndarray]:
        """int32 [N, S] tokens and segment_ids, and [N] labels."""
        tokens = np.full((len(reviews), LENGTH), self._tokenizer.pad_id, np.int32)
        segments = np.zeros_like(tokens)
        for places, some, there in rows(self._tokenizer, [r.text for r in reviews], LENGTH):
            tokens[places, : some.shape[1]] = some[: len(places)]
            segments[places, : some.shape[1]] = there[: len(places)]
        labels = np.array([self._labels.index(r.label) for r in reviews], np.int32)
        return {"tokens": tokens, "segment_ids": segments, "labels": labels}


class Judge:
    """Looks at copies: are they like their texts, and of their labels?

    Args:
        embed: texts to vectors.
        known: reviews that its linear classifier learns from.
    """

    def __init__(self, embed: augmentation.Embedder, known: Sequence[Review]) -> None:
        self._embed = embed
        positive = [review.label == "positive" for review in known]
        self._scores = ridge(embed([review.text for review in known]), positive)

    def of(self, written: Sequence[Review], texts: Sequence[Review]) -> dict[str, float]:
        """Mean cosine of texts and copies, and the share of copies that it gives their label."""
        if not written:
            return {"similarity": 1.0, "agreement": 1.0}
        copies = self._embed([review.text for review in written])
        likeness = (copies * self._embed([review.text for review in texts])).sum(axis=1)
        positive = self._scores(copies) > 0
        agree = [p == (r.label == "positive") for p, r in zip(positive, written, strict=True)]
        return {"similarity": float(likeness.mean()), "agreement": float(np.mean(agree))}


def ridge(
    vectors: np.ndarray, positive: Sequence[bool], penalty: float = 1.0
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores [N] of vectors [N, D], above 0 for those like the positive ones (ridge regression)."""
    x = np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1)
    y = np.where(positive, 1.0, -1.0)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    return lambda others: others @ weights[:-1] + weights[-1]
