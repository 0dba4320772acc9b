"""Figures of a confusion matrix equal their definitions, example by example."""

import io
import math

import jax
import numpy as np
import pytest
from rich.console import Console

from llmjax import mesh, models
from llmjax.evaluation import Confusion, evaluate_classification, evaluate_spans
from llmjax.objectives import classification
from llmjax.spec import is_param


def by_definition(labels, chosen, classes):
    """Counts of true and false positives and negatives, one label at a time."""
    found = []
    for label in range(classes):
        pairs = [(y == label, x == label) for y, x in zip(labels, chosen, strict=True) if y >= 0]
        hit = sum(y and x for y, x in pairs)
        precision = hit / sum(x for _, x in pairs) if any(x for _, x in pairs) else 0.0
        recall = hit / sum(y for y, _ in pairs) if any(y for y, _ in pairs) else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
        met = any(y or x for y, x in pairs)
        found.append((precision, recall, f1, met))
    return found


def correlation(labels, chosen, classes):
    """Gorodkin's R_K as a correlation of indicators: cov(X, Y) / √(cov(X, X) cov(Y, Y))."""
    kept = [(y, x) for y, x in zip(labels, chosen, strict=True) if y >= 0]

    def covariance(first, second):
        total = 0.0
        for label in range(classes):
            a = [pair[first] == label for pair in kept]
            b = [pair[second] == label for pair in kept]
            mean_a, mean_b = sum(a) / len(kept), sum(b) / len(kept)
            total += sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
        return total

    return covariance(0, 1) / math.sqrt(covariance(0, 0) * covariance(1, 1))


@pytest.mark.parametrize(("labels", "chosen"), [([0, 2], [0, 1]), ([0, 1], [0, -1])])
def test_every_label_and_prediction_has_a_name(labels, chosen):
    with pytest.raises(ValueError, match="but there are 2 names"):
        Confusion.of(labels, chosen, ("x", "y"))


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (4, 1), (5, 2)])
def test_figures_are_their_definitions(classes, seed):
    random = np.random.RandomState(seed)
    labels = random.randint(-1, max(classes - 1, 2), 60)  # of 4 and 5, the last is never true
    chosen = np.where(random.rand(60) < 0.6, np.maximum(labels, 0), random.randint(0, classes, 60))
    chosen[chosen == 1] = 0 if classes == 5 else 1  # of 5, this one is never chosen
    found = Confusion.of(labels, chosen, [f"label {i}" for i in range(classes)])
    expected = by_definition(labels, chosen, classes)
    for index, (precision, recall, f1, _) in enumerate(expected):
        assert found.precision[index] == pytest.approx(precision)
        assert found.recall[index] == pytest.approx(recall)
        assert found.f1[index] == pytest.approx(f1)
    met = [f1 for _, _, f1, met in expected if met]
    assert found.macro_f1 == pytest.approx(sum(met) / len(met))
    pairs = [(y, x) for y, x in zip(labels, chosen, strict=True) if y >= 0]
    accuracy = sum(y == x for y, x in pairs) / len(pairs)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.micro_f1 == pytest.approx(accuracy)
    assert found.matthews == pytest.approx(correlation(labels, chosen, classes))
    halves = (Confusion.of(labels[i::2], chosen[i::2], found.names) for i in range(2))
    assert (sum(halves, Confusion.of([], [], found.names)).counts == found.counts).all()


def test_a_hand_table():
    """True positives 6, false 1 and 2, true negatives 3: the textbook's two-by-two."""
    found = Confusion(np.array([[6, 2], [1, 3]]), ("cat", "dog"))
    assert found.precision[0] == pytest.approx(6 / 7)
    assert found.recall[0] == pytest.approx(6 / 8)
    assert found.f1[0] == pytest.approx(12 / 15)
    matthews = (6 * 3 - 1 * 2) / math.sqrt(7 * 8 * 4 * 5)
    assert found.matthews == pytest.approx(matthews)
    text = io.StringIO()
    Console(file=text, width=80).print(found.table("Animals"))
    for part in ("Animals", "cat", "dog", "0.8571", "0.7500", f"{matthews:.4f}", "12"):
        assert part in text.getvalue()


def test_a_constant_answer_correlates_with_nothing():
    found = Confusion.of([0, 1, 2, 1], [1, 1, 1, 1], "abc")
    assert found.matthews == 0
    assert found.precision[0] == found.recall[0] == 0
    empty = Confusion.of([], [], "ab")
    assert empty.metrics() == {"accuracy": 0.0, "macro_f1": 0.0, "matthews": 0.0, "labels": 0}
    with pytest.raises(ValueError, match="3 names for counts"):
        Confusion(np.zeros((2, 2)), ("a", "b", "c"))


def model(kind, labels=3):
    return models.llama(
        vocab_size=32, num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16, position="none",
        attention=models.Attention(causal=False),
        head=models.Head(kind, labels=labels, pool="first"),
    )  # fmt: skip


def rows(count, seed):
    random = np.random.RandomState(seed)
    return {
        "tokens": random.randint(0, 32, (count, 8)).astype(np.int32),
        "segment_ids": np.ones((count, 8), np.int32),
        "labels": random.randint(-1, 3, count).astype(np.int32),
    }


def test_counts_add_up_over_batches_and_devices(draw):
    """And are those of the model's own answers; rows that only fill a batch do not count."""
    config = model("classification")
    declared = models.spec(config)
    params, batches = draw(declared), [rows(8, 0), rows(8, 1)]
    loss = classification(config, confusion=True)
    found, confusion = evaluate_classification(loss, params, batches, ("a", "b", "c"))
    chosen = [
        np.argmax(
            models.logits(params, models.apply(params, b["tokens"], config)[0], config), axis=-1
        )
        for b in batches
    ]
    labels = np.concatenate([batch["labels"] for batch in batches])
    expected = Confusion.of(labels, np.concatenate(chosen), ("a", "b", "c"))
    assert (confusion.counts == expected.counts).all()
    assert 0 < found["labels"] == confusion.counts.sum() < 16
    assert found["accuracy"] == pytest.approx(expected.accuracy)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=2, tensor=2))):
        placed = jax.tree.map(
            lambda p, value: jax.device_put(value, mesh.named_sharding(p.axes)),
            declared,
            params,
            is_leaf=is_param,
        )
        spread, matrix = evaluate_classification(loss, placed, batches)
    assert (matrix.counts == expected.counts).all()
    assert matrix.names == ("0", "1", "2")
    assert spread["validation_loss"] == pytest.approx(found["validation_loss"], rel=1e-5)


def test_nothing_to_evaluate_is_an_error(draw):
    config = model("classification")
    params = draw(models.spec(config))
    none = rows(8, 0) | {"labels": np.full(8, -1, np.int32)}
    with pytest.raises(ValueError, match="no labels"):
        evaluate_classification(classification(config, confusion=True), params, [none])
    with pytest.raises(ValueError, match="make it with confusion=True"):
        evaluate_classification(classification(config), params, [rows(8, 0)])


def test_spans_are_means_over_those_there_are(draw):
    config = model("span")
    params, loss = draw(models.spec(config)), classification(config)
    spans = np.array([[0, 3], [2, 2], [-1, -1], [5, 7]] * 2, np.int32)
    batch = {name: rows(8, 0)[name] for name in ("tokens", "segment_ids")} | {"spans": spans}
    found = evaluate_spans(loss, params, [batch])
    weighted, metrics = loss(params, batch, None)
    assert found["spans"] == 6
    assert found["exact_match"] == pytest.approx(float(metrics["accuracy"]) / 6)
    assert found["validation_loss"] == pytest.approx(float(weighted.sum) / 6, rel=1e-5)
    assert 0 <= found["exact_match"] <= found["token_f1"] <= 1
    with pytest.raises(ValueError, match="no spans"):
        evaluate_spans(loss, params, [])
