"""Classifiers for `judge_augmentation.py`: some learn from copies, one judges them.

Two kinds learn: `frozen`, logistic regression on a frozen encoder's embeddings, and `words`, on a
bag of tokens. `Tuner` fine-tunes all of the encoder instead.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

from llmjax import hf, models, objectives, optim, train
from llmjax.data import augmentation, load_tokenizer
from llmjax.data.augmentation.encoders import rows

BATCH, LENGTH = 16, 48  # rows of a step, and tokens that are read of a text
LABELS = ("negative", "positive")


@dataclasses.dataclass(frozen=True)
class Review:
    """A text and its label."""

    text: str
    label: str


def texts(reviews: Sequence[Review]) -> list[str]:
    """The texts of reviews."""
    return [review.text for review in reviews]


def numbers(reviews: Sequence[Review]) -> np.ndarray:
    """The labels of reviews, int [N]."""
    return np.array([LABELS.index(review.label) for review in reviews])


class Words:
    """Bags of tokens of texts, as unit vectors."""

    def __init__(self, directory: str) -> None:
        self._tokenizer = load_tokenizer(directory)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, V]."""
        found = np.zeros((len(texts), self._tokenizer.vocab_size), np.float32)
        for row, tokens in enumerate(self._tokenizer.encode_batch(list(texts))):
            found[row, tokens] = 1
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1)


Features = Callable[[Sequence[str]], np.ndarray]


def penalty(features: Features, drawn: Sequence[Review]) -> float:
    """The penalty that is best in five-fold cross-validation on some texts."""
    vectors = features(texts(drawn))
    chosen = LogisticRegressionCV(
        Cs=np.logspace(-1, 3, 9), cv=5, scoring="accuracy", max_iter=500, l1_ratios=(0,),
        use_legacy_attributes=False,
    ).fit(vectors[:, vectors.any(axis=0)], numbers(drawn))  # fmt: skip
    return float(chosen.C_)


def regression(
    features: Features,
    strength: float,
    drawn: Sequence[Review],
    written: Sequence[Review],
    tests: Sequence[Sequence[Review]],
) -> list[float]:
    """The accuracies, on each test, of logistic regression trained on texts and copies.

    Copies have the same weight as texts, and all together the weight of the texts alone, so that
    one penalty suits both.
    """
    both = [*drawn, *written]
    vectors = features(texts(both))
    occurring = vectors.any(axis=0)
    model = LogisticRegression(C=strength, max_iter=500)
    model.fit(vectors[:, occurring], numbers(both), np.full(len(both), len(drawn) / len(both)))
    return [
        float(model.score(features(texts(test))[:, occurring], numbers(test))) for test in tests
    ]


class Tuner:
    """Fine-tunes all parameters of an encoder with a new head, compiled once for all sets.

    Args:
        directory: folder of the encoder.
        steps: steps of every run, whatever the number of texts.
        rate: peak learning rate.
    """

    def __init__(self, directory: str, steps: int, rate: float = 1e-4) -> None:
        config, self._pretrained = hf.load(directory, dtype="float32")
        config = models.with_head(config, "classification", labels=len(LABELS))
        self._config = dataclasses.replace(
            config, dropout=models.Dropout(hidden=0.1, classifier=0.1)
        )
        self._tokenizer, self._steps = load_tokenizer(directory), steps
        spec = models.spec(self._config)
        settings = dataclasses.replace(optim.suggested("full", steps), learning_rate=rate)
        optimizer = optim.make(settings, spec, steps)
        self._start = jax.jit(functools.partial(train.init_state, spec=spec, optimizer=optimizer))
        self._step = train.make_step(objectives.classification(self._config), optimizer)

    def accuracy(self, reviews: Sequence[Review], test: Sequence[Review], seed: int) -> float:
        """The accuracy on a test after fine-tuning on some reviews."""
        state = self._start(jax.random.key(seed))
        # The step donates its input.
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
        classify = augmentation.Classifier(plain, state.params, self._tokenizer, LABELS, LENGTH)
        guesses = classify(texts(test))
        return float(np.mean([g == r.label for g, r in zip(guesses, test, strict=True)]))

    def _encoded(self, reviews: Sequence[Review]) -> dict[str, np.ndarray]:
        """int32 [N, S] tokens and segment_ids, and [N] labels."""
        tokens = np.full((len(reviews), LENGTH), self._tokenizer.pad_id, np.int32)
        segments = np.zeros_like(tokens)
        for places, some, there in rows(self._tokenizer, texts(reviews), LENGTH):
            tokens[places, : some.shape[1]] = some[: len(places)]
            segments[places, : some.shape[1]] = there[: len(places)]
        labels = numbers(reviews).astype(np.int32)
        return {"tokens": tokens, "segment_ids": segments, "labels": labels}


class Judge:
    """Judges copies by similarity to their texts, and by whether they keep the label.

    Args:
        embed: texts to vectors.
        known: reviews to train its linear classifier on.
    """

    def __init__(
        self, embed: Callable[[Sequence[str]], np.ndarray], known: Sequence[Review]
    ) -> None:
        self._embed = embed
        self._model = LogisticRegression(C=10.0, max_iter=500)
        self._model.fit(embed(texts(known)), numbers(known))

    def of(self, written: Sequence[Review], originals: Sequence[Review]) -> dict[str, float]:
        """Mean cosine of texts and copies, and the share of each classified with their label."""
        own = self._embed(texts(originals))
        copies = self._embed(texts(written))
        return {
            "similarity": float((copies * own).sum(axis=1).mean()),
            "agreement": float(self._model.score(copies, numbers(written))),
            "agreement_of_originals": float(self._model.score(own, numbers(originals))),
        }
