"""Labels of sequences, of tokens and of spans: cross entropies by hand, whatever the padding."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.objectives import ClassificationConfig, balanced_weights, classification
from llmjax.spec import is_param

B, S, D, V, N = 8, 16, 16, 32, 3


def config_of(kind, **fields) -> models.ModelConfig:
    head = models.Head(kind, labels=N, bias=True, pool="first")
    encoder = {"attention": models.Attention(causal=False), "position": "none"}
    sizes = {"vocab_size": V, "num_layers": 1, "embed_dim": D, "num_heads": 2, "mlp_dim": 16}
    return models.llama(**(sizes | encoder | {"head": head} | fields))


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Rows of 2 to 16 tokens; some rows, tokens and ends of spans have no label."""
    random = np.random.default_rng(0)
    sizes = 2 * np.arange(1, B + 1)[:, None]
    starts = random.integers(0, sizes[:, 0])
    spans = np.stack([starts, sizes[:, 0] - 1], axis=1)
    spans[2, 1], spans[5] = -1, (3, S + 4)
    spans[1], spans[6] = (0, 9), (4, 2)  # at padding; the wrong way round
    return {
        "tokens": random.integers(0, V, (B, S)).astype(np.int32),
        "segment_ids": (np.arange(S) < sizes).astype(np.int32),
        "classification": random.integers(-1, N, B).astype(np.int32),
        "tokens labels": random.integers(-1, N, (B, S)).astype(np.int32),
        "spans": spans.astype(np.int32),
    }


def given(kind, batch):
    """What the objective reads."""
    rest = {name: batch[name] for name in ("tokens", "segment_ids")}
    if kind == "span":
        return rest | {"spans": batch["spans"]}
    return rest | {"labels": batch["classification" if kind != "tokens" else "tokens labels"]}


def with_gradient(loss, params, batch, key=None):
    def total(params):
        weighted, metrics = loss(params, batch, key)
        return weighted.sum, (weighted.weight, metrics["accuracy"])

    return jax.value_and_grad(total, has_aux=True)(params)


def cross_entropy(logits, label) -> float:
    logits = np.asarray(logits, np.float64)
    return math.log(np.exp(logits).sum()) - logits[label]


def by_hand(kind, logits, rows):
    """Loss, labels and right answers, one by one."""
    pairs = []
    if kind == "classification":
        pairs = [(logits[i], y) for i, y in enumerate(rows["labels"]) if y >= 0]
    elif kind == "tokens":
        pairs = [(logits[at], y) for at, y in np.ndenumerate(rows["labels"]) if y >= 0]
    if kind != "span":
        total = sum(cross_entropy(x, y) for x, y in pairs)
        return total, len(pairs), sum(np.argmax(x) == y for x, y in pairs)
    total = count = right = 0
    for row, (start, end) in enumerate(rows["spans"]):
        size = rows["segment_ids"][row].sum()
        if start < 0 or end < start or end >= size:
            continue
        ends = [(logits[row, :size, 0], start), (logits[row, :size, 1], end)]
        total += sum(cross_entropy(x, y) for x, y in ends) / 2
        count += 1
        right += best_span(logits[row, :size]) == (start, end)
    return total, count, right


def best_span(scores) -> tuple[int, int]:
    """Of all pairs of places, in turn: that with the best sum, the start not after the end."""
    pairs = [(i, j) for j in range(len(scores)) for i in range(j + 1)]
    return max(pairs, key=lambda pair: scores[pair[0], 0] + scores[pair[1], 1])


KINDS = ("classification", "tokens", "span")


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_cross_entropies_of_labels(kind, batch, draw):
    config, rows = config_of(kind), given(kind, batch)
    params = draw(models.spec(config))
    weighted, metrics = classification(config)(params, rows, None)
    segments = rows["segment_ids"]
    hidden, _ = models.apply(params, rows["tokens"], config, segment_ids=segments)
    logits = np.asarray(models.logits(params, hidden, config, segment_ids=segments))
    total, count, right = by_hand(kind, logits, rows)
    assert 0 < count < (B * S if kind == "tokens" else B)
    np.testing.assert_allclose(weighted.sum, total, rtol=1e-5)
    assert (weighted.weight, metrics["accuracy"]) == (count, right)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_changes_nothing(kind, batch, draw):
    config, rows = config_of(kind), given(kind, batch)
    params = draw(models.spec(config))
    moved = {name: rows[name].copy() for name in rows}
    for row, size in enumerate(rows["segment_ids"].sum(1)):
        for name, values in rows.items():
            if name == "spans":
                inside = np.all((values[row] >= 0) & (values[row] < size))
                moved[name][row] = values[row] + S - size if inside else -1
            elif values.ndim == 2:
                moved[name][row] = np.roll(values[row], S - size)
    one = functools.partial(with_gradient, classification(config))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        *(jax.jit(one)(params, x) for x in (rows, moved)),
    )


@pytest.mark.parametrize(
    "kind", ["classification", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_a_mesh_of_every_axis_equals_one_device(kind, batch, draw):
    config, rows = config_of(kind, dropout=models.Dropout(0.1, 0.1, 0.1, 0.1)), given(kind, batch)
    declared, key = models.spec(config), jax.random.key(0)
    params = draw(declared)
    one = jax.jit(functools.partial(with_gradient, classification(config)))
    alone = jax.device_get(one(params, rows, key))
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        placed = jax.tree.map(
            lambda p, value: jax.device_put(value, mesh.named_sharding(p.axes)),
            declared,
            params,
            is_leaf=is_param,
        )
        spread = {
            name: jax.device_put(x, mesh.named_sharding(("batch", "sequence")[: x.ndim]))
            for name, x in rows.items()
        }
        found = jax.device_get(one(placed, spread, key))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_labels_costs_nothing(kind, batch, draw):
    config, rows = config_of(kind), given(kind, batch)
    name = "spans" if kind == "span" else "labels"
    rows |= {name: np.full_like(rows[name], -1), "segment_ids": np.zeros((B, S), np.int32)}
    params = draw(models.spec(config))
    (total, (weight, _)), grads = with_gradient(classification(config), params, rows)
    assert (total, weight) == (0, 0)
    assert all(jnp.all(x == 0) for x in jax.tree.leaves(grads))


def test_smoothing_and_class_weights_as_pytorch_defines_them(batch, draw):
    """Σ w_y (1 - ε) CE(y) + ε/N Σ_c w_c CE(c), over Σ w_y."""
    config, rows = config_of("classification"), given("classification", batch)
    params, weights, smooth = draw(models.spec(config)), (0.5, 2.0, 3.0), 0.2
    options = ClassificationConfig(smooth, weights)
    weighted, metrics = classification(config, options)(params, rows, None)
    segments = rows["segment_ids"]
    hidden, _ = models.apply(params, rows["tokens"], config, segment_ids=segments)
    logits = np.asarray(models.logits(params, hidden, config, segment_ids=segments))
    total = weight = right = 0.0
    for row, label in enumerate(rows["labels"]):
        if label >= 0:
            total += (1 - smooth) * weights[label] * cross_entropy(logits[row], label)
            total += sum(
                smooth / N * weights[other] * cross_entropy(logits[row], other)
                for other in range(N)
            )
            weight += weights[label]
            right += weights[label] * (np.argmax(logits[row]) == label)
    np.testing.assert_allclose(weighted.sum, total, rtol=1e-5)
    np.testing.assert_allclose((weighted.weight, metrics["accuracy"]), (weight, right), rtol=1e-6)


def test_balanced_weights_let_each_label_count_alike():
    counts = (1, 3, 0, 6)
    weights = balanced_weights(counts)
    assert weights[2] == 1
    shares = [count * weight for count, weight in zip(counts, weights, strict=True) if count]
    np.testing.assert_allclose(shares, sum(counts) / len(counts))


def test_tokens_f1_is_that_of_sets_of_places(draw):
    """Spans of hand-made scores, whose ends alone would be the wrong way round."""
    config = config_of("span")
    segments = np.array([[1] * 6, [1] * 6, [1, 1, 1, 0, 0, 0]], np.int32)
    spans = np.array([[1, 3], [4, 4], [0, 2]], np.int32)
    rows = {"tokens": np.zeros((3, 6), np.int32), "segment_ids": segments, "spans": spans}
    scores = np.zeros((3, 6, 2), np.float32)
    scores[0, 2, 0], scores[0, 4, 1], scores[0, 1, 1] = 3, 3, 4  # 2 to 4, though 1 ends better
    scores[1, 4, 0], scores[1, 4, 1] = 1, 1
    scores[2, 1, 0], scores[2, 2, 1], scores[2, 5, 1] = 1, 1, 9  # 5 is padding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "logits", lambda *args, **named: jnp.asarray(scores))
        weighted, metrics = classification(config)(draw(models.spec(config)), rows, None)
    expected = 0.0
    for (start, end), (first, last) in zip([(2, 4), (4, 4), (1, 2)], spans, strict=True):
        ours, true = set(range(start, end + 1)), set(range(first, last + 1))
        expected += 2 * len(ours & true) / (len(ours) + len(true))
    assert (weighted.weight, metrics["accuracy"]) == (3, 1)
    np.testing.assert_allclose(metrics["token_f1"], expected, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="not reward"):
        classification(config_of("reward"))
    with pytest.raises(ValueError, match="do not apply to spans"):
        classification(config_of("span"), confusion=True)
    with pytest.raises(ValueError, match="class_weights has 2 numbers for head.labels=3"):
        classification(config_of("tokens"), ClassificationConfig(class_weights=(1.0, 2.0)))
    for settings in ({"label_smoothing": 1.0}, {"class_weights": (1.0, -1.0)}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ClassificationConfig(**settings)
