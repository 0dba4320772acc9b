"""The linear model learns, does what scikit-learn does, and survives its file."""

import pickle
import random

import numpy as np
import pytest

from llmjax.data.cleaning import Document, QualityModel, Rejected, quality_model

pytest.importorskip("sklearn")

TEXT = "the river runs slowly past old houses and every evening people walk along its banks"
WORDS = TEXT.split()


def samples(seed: int, count: int = 150) -> tuple[list[str], list[str]]:
    """Sentences whose words are in an order that has a rule, and the same words in none."""
    draw = random.Random(seed)
    good, bad = [], []
    for _ in range(count):
        start = draw.randrange(len(WORDS))
        words = [WORDS[(start + i) % len(WORDS)] for i in range(draw.randint(8, 14))]
        good.append(" ".join(words))
        bad.append(" ".join(draw.sample(words, len(words))))
    return good, bad


@pytest.fixture(scope="module")
def model() -> quality_model.LinearModel:
    return quality_model.train(*samples(0), features=1 << 14)


def test_it_tells_order_from_disorder(model) -> None:
    good, bad = samples(1)
    assert np.mean(model.scores(good) > 0.5) > 0.95
    assert np.mean(model.scores(bad) < 0.5) > 0.95


def test_scores_are_those_of_logistic_regression() -> None:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    good, bad = samples(2, 40)
    features = HashingVectorizer(
        n_features=256, ngram_range=(1, 3), token_pattern=r"\w+|[^\w\s]", alternate_sign=False
    ).transform(good + bad[:10])
    expected = LogisticRegression(C=2.0, class_weight="balanced", max_iter=1000, tol=1e-7)
    expected.fit(features, [1] * 40 + [0] * 10)
    ours = quality_model.train(good, bad[:10], ngrams=3, features=256, regularization=0.5)
    probabilities = expected.predict_proba(features)[:, 1]
    np.testing.assert_allclose(ours.scores(good + bad[:10]), probabilities, atol=1e-6)


def test_there_is_nothing_to_learn_from_one_kind() -> None:
    with pytest.raises(ValueError, match="there is no bad text to train on"):
        quality_model.train(["good"], [])


def test_the_step_reads_the_file_and_goes_by_it(model, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = quality_model.load(str(path))
    np.testing.assert_array_equal(loaded.weights, model.weights)
    assert (loaded.bias, loaded.ngrams) == (model.bias, model.ngrams)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    step = pickle.loads(pickle.dumps(QualityModel(str(path))))
    (good, *_), (bad, *_) = samples(3)
    kept, dropped = step(Document(good)), step(Document(bad))
    assert isinstance(kept, Document)
    assert kept.metadata["quality"] == pytest.approx(model.scores([good])[0], abs=1e-4)
    assert isinstance(dropped, Rejected)
    assert dropped.reason == "low quality"
    assert dropped.score == pytest.approx(model.scores([bad])[0])
    for text in ("", "\x00", "\ud800", "word " * 10_000):
        step(Document(text))


def test_a_model_that_cannot_be_read_is_named(tmp_path) -> None:
    from safetensors.numpy import save_file

    other, broken = tmp_path / "other.safetensors", tmp_path / "broken.safetensors"
    save_file({"weights": np.zeros(3, np.float32)}, other)
    broken.write_bytes(b"pickle")
    for path in (tmp_path / "none", other, broken):
        with pytest.raises(ValueError, match=f"quality_model.model={path} cannot be read"):
            QualityModel(str(path))(Document("text"))
    with pytest.raises(ValueError, match="name the file of a model"):
        QualityModel()(Document("text"))
