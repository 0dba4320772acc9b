"""Training a model of quality: an independent fit, honest figures, texts drawn by hashes."""

import gzip
import json
import pathlib
import random
from pydoc_data import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmjax.data import config
from llmjax.data.cleaning import Rejected, learned_quality, quality_model

pytest.importorskip("sklearn")

SCORES = st.lists(st.sampled_from([0.0, 0.123456789, 0.5, 0.9, 0.99999999, 1.0]), min_size=1)


def paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if len(part.split()) >= 20]


@pytest.fixture(scope="module")
def prose() -> list[str]:
    """What people wrote of Python for others to read, by paragraph."""
    return list(dict.fromkeys(p for text in topics.topics.values() for p in paragraphs(text)))


@pytest.fixture(scope="module")
def chat() -> list[str]:
    """What people typed to pass the time, by stretch of a dialogue."""
    chitchat = pytest.importorskip("chitchat_dataset")
    folder = pathlib.Path(chitchat.__file__).parent
    dialogues = json.loads((folder / "dataset.json").read_text()).values()
    texts = [
        " ".join(message["text"] for turn in dialogue["messages"][at : at + 8] for message in turn)
        for dialogue in list(dialogues)[:300]
        for at in range(0, len(dialogue["messages"]), 8)
    ]
    return [text for text in dict.fromkeys(texts) if len(text.split()) >= 20]


def newton(texts: list[str], labels: np.ndarray, ridge: float) -> np.ndarray:
    """The probabilities of texts to be good, by Newton's method on counts of words, in numpy alone.

    The loss is Σ c log(1 + exp(-y (w·x + b))) + ridge/2 |w|² with c = n / (2 n_k), so that both
    kinds weigh the same; x are counts of words, of length 1.
    """
    vocabulary = sorted({word for text in texts for word in text.split()})
    counts = np.array([[text.split().count(word) for word in vocabulary] for text in texts])
    x = np.column_stack([counts / np.linalg.norm(counts, axis=1)[:, None], np.ones(len(texts))])
    costs = len(labels) / 2 / np.where(labels, labels.sum(), (~labels).sum())
    penalty = ridge * np.diag([1.0] * len(vocabulary) + [0.0])
    weights = np.zeros(len(vocabulary) + 1)
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ weights))
        gradient = x.T @ (costs * (p - labels)) + penalty @ weights
        hessian = (x.T * (costs * p * (1 - p))) @ x + penalty
        weights -= np.linalg.solve(hessian, gradient)
    return 1 / (1 + np.exp(-x @ weights))


@pytest.mark.parametrize("ridge", [0.1, 0.5, 10.0])
def test_the_fit_is_that_of_newtons_method(ridge: float) -> None:
    draw = random.Random(0)
    labels = np.array([True] * 30 + [False] * 12)
    kinds = {True: "river house evening walk", False: "click here free now"}
    texts = [" ".join(draw.choices((kinds[k] + " the of").split(), k=9)) for k in labels.tolist()]
    model = quality_model.train(
        texts[:30], texts[30:], ngrams=1, features=1 << 14, regularization=ridge
    )
    np.testing.assert_allclose(model.scores(texts), newton(texts, labels, ridge), atol=1e-5)


def test_it_tells_prose_from_chat(prose: list[str], chat: list[str]) -> None:
    _, trial = learned_quality.learn(prose, chat, held_out=0.3, features=1 << 16)
    assert trial.learned["good"] + trial.held_out["good"] == len(prose)
    assert min(trial.held_out.values()) > 200
    assert trial.accuracy > 0.95
    assert trial.roc_auc > 0.99
    # Where there is nothing to tell apart, it does not say so of what it has not seen.
    shuffled = random.Random(0).sample(chat, len(chat))
    _, none = learned_quality.learn(shuffled[::2], shuffled[1::2], held_out=0.3, features=1 << 16)
    assert none.roc_auc == pytest.approx(0.5, abs=0.1)


@given(
    SCORES, SCORES, st.sampled_from([0.01, 0.3, 0.5, 0.9, 1.0]), st.sampled_from(["good", "bad"])
)
def test_figures_are_those_of_their_definitions(good, bad, share, of) -> None:
    scores = {"good": np.array(good), "bad": np.array(bad)}
    wins = [(g > b) + (g == b) / 2 for g in good for b in bad]
    assert learned_quality._roc_auc(*scores.values()) == pytest.approx(np.mean(wins))
    found = learned_quality._threshold(scores, of, share)
    kept = {kind: np.mean([s >= found.minimum for s in values]) for kind, values in scores.items()}
    assert (found.good, found.bad) == (kept["good"], kept["bad"])
    assert kept[of] >= share - 1e-12
    assert found.minimum == round(found.minimum, 6)
    # Any higher minimum of as many digits keeps fewer.
    assert np.mean(scores[of] >= found.minimum + 1.1e-6) < share


def test_texts_are_drawn_by_their_hashes(tmp_path: pathlib.Path) -> None:
    texts = [f"text number {i}" for i in range(200)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(lines[:120]) + "no JSON\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[80:]).encode()))
    (tmp_path / "turned.jsonl").write_text("".join(reversed(lines)))
    both = [config.Source("x", str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl.gz")]
    turned = [config.Source("x", str(tmp_path / "turned.jsonl"))]
    drawn = learned_quality.sample(both, most=50)
    assert drawn.left_out == {"not JSON": 1}
    assert drawn.texts == learned_quality.sample(turned, most=50).texts
    assert len(set(drawn.texts)) == 50
    assert set(drawn.texts) < set(learned_quality.sample(both, most=100).texts)
    assert set(drawn.texts) != set(learned_quality.sample(both, most=50, seed=1).texts)
    assert set(learned_quality.sample(both).texts) == set(texts)


def test_steps_come_first_and_may_fail(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n")

    def step(document):
        if "two" in document.text:
            raise OverflowError
        if "three" in document.text:
            return Rejected(document, "three")
        return document.with_text(document.text.upper())

    source = config.Source("x", str(path), split="line")
    drawn = learned_quality.sample([source], steps=[step])
    assert [text.strip() for text in drawn.texts] == ["ONE"]
    assert drawn.left_out == {"failed: OverflowError": 1, "three": 1}


def test_the_same_texts_give_the_same_model(prose: list[str], chat: list[str]) -> None:
    few = prose[:200], chat[:150]
    one, trial = learned_quality.learn(*few, features=1 << 12)
    other, again = learned_quality.learn(*few, features=1 << 12)
    np.testing.assert_array_equal(one.weights, other.weights)
    assert trial == again
    _, seeded = learned_quality.learn(*few, features=1 << 12, seed=1)
    assert seeded != trial
    shared = (prose[0], *few[1])
    _, told = learned_quality.learn(few[0], shared, features=1 << 12)
    assert told.contradictory == 1
    assert sum(told.learned.values()) + sum(told.held_out.values()) == 199 + 150


def test_held_out_texts_teach_nothing(prose: list[str], chat: list[str]) -> None:
    """Without them the model is the same, weight for weight."""
    good, bad = prose[:60], chat[:60]
    model, trial = learned_quality.learn(good, bad, held_out=0.5, features=1 << 10)
    dropped = 0
    for text in good[:10]:
        rest = [other for other in good if other != text]
        less, shorter = learned_quality.learn(rest, bad, held_out=0.5, features=1 << 10)
        was_held_out = shorter.held_out["good"] == trial.held_out["good"] - 1
        assert np.array_equal(less.weights, model.weights) == was_held_out
        dropped += was_held_out
    assert 0 < dropped < 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": 0.0}, "held_out is 0"),
        ({"held_out": 0.001}, "of 20 good texts, 20 are for training and 0 held out"),
        ({"kept": (0.5, 1.5)}, "kept has 1.5"),
        ({"ngrams": 0}, "ngrams is 0"),
        ({"features": 0}, "features is 0"),
        ({"regularization": 0.0}, "regularization is 0"),
    ],
)
def test_what_cannot_be(settings: dict, message: str) -> None:
    good, bad = ([f"{kind} {i}" for i in range(20)] for kind in ("good", "bad"))
    with pytest.raises(ValueError, match=message):
        learned_quality.learn(good, bad, **settings)
