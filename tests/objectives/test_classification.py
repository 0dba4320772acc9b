"""Labels of sequences, of tokens and of spans: cross entropies by hand, whatever the padding."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.objectives import classification
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
    spans[1] = (0, 9)  # at padding
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
        if min(start, end) < 0 or max(start, end) >= size:
            continue
        ends = [(logits[row, :size, 0], start), (logits[row, :size, 1], end)]
        total += sum(cross_entropy(x, y) for x, y in ends) / 2
        count += 1
        right += all(np.argmax(x) == y for x, y in ends)
    return total, count, right


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


def test_other_heads_are_refused():
    with pytest.raises(ValueError, match="not reward"):
        classification(config_of("reward"))
