"""Heads are what their formulas say, whatever the padding and the mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.models import heads
from llmjax.models.options import Head

B, S, D, V = 8, 16, 16, 64
DENSE = {"dense": True, "norm": True, "bias": True}

# kind: (head, shape of its logits)
HEADS = {
    "lm": (Head("lm"), (B, S, V)),
    "mlm": (Head("mlm", **DENSE), (B, S, V)),
    "rtd": (Head("rtd", dense=True, bias=True), (B, S)),
    "classification": (Head("classification", labels=3, activation="tanh", **DENSE), (B, 3)),
    "tokens": (Head("tokens", labels=5, bias=True), (B, S, 5)),
    "span": (Head("span", bias=True), (B, S, 2)),
    "reward": (Head("reward"), (B,)),
    "value": (Head("value", dense=True), (B, S)),
}
SEQUENCES = ("classification", "reward")


def config_of(head: Head, **fields) -> models.ModelConfig:
    sizes = {"vocab_size": V, "num_layers": 1, "embed_dim": D, "num_heads": 4}
    encoder = {"bias": "all", "norm": "layernorm", "attention": models.Attention(causal=False)}
    return models.llama(**(sizes | encoder | {"head": head} | fields))


@pytest.fixture(scope="module")
def hidden() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, S, D)).astype(np.float32)


def segments_of(side: str) -> np.ndarray:
    """Row i has i + 1 tokens of padding, and the others belong to segment 1."""
    place = np.arange(S)
    sizes = np.arange(B)[:, None] + 1
    return (place >= sizes if side == "left" else place < S - sizes).astype(np.int32)


def params_of(config, draw):
    spec = {"head": heads.head_spec(config)}
    spec["embedding"] = models.spec(config)["embedding"]
    return draw({name: node for name, node in spec.items() if node is not None})


def gelu(x):
    return x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


def layer_norm(x, norm, epsilon):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * norm["scale"] + norm["bias"]


def by_hand(params, hidden, config, weights=None):
    """The logits in float64; `weights` [B, S] pool heads of sequences."""
    head, tree = config.head, jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x, tree, table = hidden.astype(np.float64), tree.get("head"), tree["embedding"]
    if head.kind in SEQUENCES:
        x = np.einsum("bs,bsd->bd", weights, x)
    if head.dense:
        x = x @ tree["dense"] + tree["dense_bias"]
        x = gelu(x) if head.activation == "gelu" else np.tanh(x)
        x = layer_norm(x, tree["norm"], config.norm_epsilon) if head.norm else x
    if head.kind == "lm":
        x = x @ tree.T
    elif head.kind == "mlm":
        x = x @ (table if config.tied else tree["out"]).T + tree["bias"]
    else:
        x = x @ tree["out"] + tree.get("out_bias", 0.0)
    if head.kind in ("rtd", "value", "reward"):
        x = x[..., 0]
    return head.cap * np.tanh(x / head.cap) if head.cap else x


def pooling(segment_ids, pool):
    """Weights [B, S] of the tokens, by reading each row."""
    weights = np.zeros(segment_ids.shape)
    for row, segments in enumerate(segment_ids):
        places = np.flatnonzero(segments)
        chosen = {"first": places[:1], "last": places[-1:], "mean": places}[pool]
        weights[row, chosen] = 1 / len(chosen)
    return weights


@pytest.mark.parametrize("kind", HEADS)
def test_logits_are_what_the_formula_says(kind, hidden, draw):
    head, shape = HEADS[kind]
    config = config_of(head)
    params = params_of(config, draw)
    segment_ids = segments_of("right")
    found = models.logits(params, hidden, config, segment_ids=segment_ids)
    assert found.shape == shape and found.dtype == jnp.float32
    expected = by_hand(params, hidden, config, pooling(segment_ids, "last"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_narrow_embeddings_and_caps(tied, hidden, draw):
    """ELECTRA's generator: the dense layer leads to the width of the embeddings."""
    narrow = models.Embedding(dim=8)
    config = config_of(Head("mlm", cap=2.0, **DENSE), tied=tied, embedding=narrow)
    params = params_of(config, draw)
    assert params["head"]["dense"].shape == (D, 8)
    assert ("out" in params["head"]) == (not tied)
    assert models.lm_weight(params, config).shape == (V, 8)
    found = models.logits(params, hidden, config)
    np.testing.assert_allclose(found, by_hand(params, hidden, config), rtol=1e-5, atol=1e-5)
    assert np.abs(found).max() < 2
    assert heads.mlm_states(params, hidden, config).shape == (B, S, 8)


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_sequence_head(pool, side, hidden, draw):
    """Each row equals itself alone, without its padding, whatever the padding holds."""
    config = config_of(Head("classification", labels=3, pool=pool, **DENSE))
    params = params_of(config, draw)
    segment_ids = segments_of(side)
    dirty = np.where(segment_ids[..., None] == 0, 1e6, hidden)
    found = models.logits(params, dirty, config, segment_ids=segment_ids)
    expected = by_hand(params, hidden, config, pooling(segment_ids, pool))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for row in (0, 5):
        alone = hidden[row : row + 1, segment_ids[row] != 0]
        np.testing.assert_allclose(
            models.logits(params, alone, config)[0], found[row], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_each_segment_has_a_reward(pool, hidden, draw):
    """As if it were alone in its row, wherever it is; what is not there is said."""
    config = config_of(Head("reward", pool=pool, dense=True, bias=True))
    params = params_of(config, draw)
    segment_ids = np.zeros((B, S), np.int32)
    segment_ids[:4, 1:5], segment_ids[:4, 5:12] = 1, 2
    segment_ids[4:, 3:4], segment_ids[4:, 9:] = 3, 1
    dirty = np.where(segment_ids[..., None] == 0, 1e6, hidden)
    found, present = models.segment_rewards(params, dirty, config, segment_ids, 3)
    assert present.tolist() == [[True, True, False]] * 4 + [[True, False, True]] * 4
    for segment in (1, 2, 3):
        only = segment_ids == segment
        rows = only.any(axis=1)
        expected = by_hand(params, hidden[rows], config, pooling(only[rows], pool))
        np.testing.assert_allclose(found[rows, segment - 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_rows_of_padding_are_finite(pool, hidden, draw):
    config = config_of(Head("reward", pool=pool))
    params = params_of(config, draw)
    empty = np.zeros((B, S), np.int32)

    def total(hidden):
        return jnp.sum(models.logits(params, hidden, config, segment_ids=empty))

    value, gradient = jax.value_and_grad(total)(hidden)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_poolers(hidden, draw):
    """Of a bare encoder, and of the one kept for next sentences: tanh(W h + b) of the first."""
    bare = config_of(Head("none", dense=True, activation="tanh", pool="first"))
    beside = config_of(Head("mlm", next_sentence=True, **DENSE))
    segment_ids = segments_of("left")
    first = np.einsum("bs,bsd->bd", pooling(segment_ids, "first"), hidden)
    for config, name in ((bare, None), (beside, "pooler")):
        params = params_of(config, draw)
        head = params["head"] if name is None else params["head"][name]
        found = heads.pooled(params, hidden, config, segment_ids=segment_ids)
        expected = np.tanh(first @ head["dense"] + head["dense_bias"])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert params["head"]["next_sentence"]["out"].shape == (D, 2)


def test_what_a_head_declares():
    assert heads.head_spec(config_of(Head("none"))) is None
    assert heads.head_spec(config_of(Head("lm"), tied=True)) is None
    assert heads.head_spec(config_of(Head("mlm"), tied=True)) is None
    assert heads.head_spec(config_of(Head("lm"))).shape == (V, D)
    # ModernBERT: biases nowhere but at the output.
    spec = heads.head_spec(config_of(Head("mlm", **DENSE), bias="none", tied=True))
    assert sorted(spec) == ["bias", "dense", "norm"] and sorted(spec["norm"]) == ["scale"]


def test_dropout_needs_a_key_and_keeps_the_mean(hidden, draw):
    dropout = models.Dropout(classifier=0.5)
    config = config_of(Head("tokens", labels=3, bias=True), dropout=dropout)
    params = params_of(config, draw)
    plain = models.logits(params, hidden, config)
    np.testing.assert_allclose(plain, by_hand(params, hidden, config), rtol=1e-5, atol=1e-5)
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.lax.map(lambda key: models.logits(params, hidden, config, key=key), keys)
    error = np.std(drawn, axis=0) / math.sqrt(len(keys))
    assert np.abs((np.mean(drawn, axis=0) - plain) / error).max() < 5  # of 384
    sequence = config_of(Head("reward"), dropout=dropout)
    params = params_of(sequence, draw)
    two = [models.logits(params, hidden, sequence, key=key) for key in keys[:2]]
    assert np.all(two[0] != two[1])


@pytest.mark.parametrize("kind", HEADS)
def test_a_mesh_of_every_axis_equals_one_device(kind, hidden, draw):
    config = config_of(HEADS[kind][0], dropout=models.Dropout(classifier=0.1))
    spec = {"embedding": models.spec(config)["embedding"], "head": heads.head_spec(config)}
    params, key = draw(spec), jax.random.key(0)
    segment_ids = segments_of("right")

    def both(params, hidden, segment_ids):
        def total(params, hidden):
            logits = models.logits(params, hidden, config, segment_ids=segment_ids, key=key)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.value_and_grad(total, (0, 1), has_aux=True)(params, hidden)

    alone = jax.jit(both)(params, hidden, segment_ids)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        placed = jax.tree.map(
            lambda param, value: jax.device_put(value, mesh.named_sharding(param.axes)),
            spec,
            params,
            is_leaf=lambda node: hasattr(node, "axes"),
        )
        batch = mesh.shard_batch({"segment_ids": segment_ids})
        activations = jax.device_put(hidden, mesh.named_sharding(("batch", "sequence", None)))
        spread = jax.device_get(jax.jit(both)(placed, activations, batch["segment_ids"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), spread, alone)


@pytest.mark.parametrize(
    ("head", "fields", "message"),
    [
        (Head("mlm"), {"embedding": models.Embedding(dim=8)}, "width 16 to the embeddings'"),
        (Head("lm"), {"embedding": models.Embedding(dim=8), "tied": True}, "width 8 cannot be"),
    ],
)
def test_heads_that_cannot_be_made_are_refused(head, fields, message):
    with pytest.raises(ValueError, match=message):
        heads.head_spec(config_of(head, **fields))


@pytest.mark.parametrize("name", ["dense", "bias", "next_sentence"])
def test_a_language_model_has_a_table_and_nothing_else(name):
    with pytest.raises(ValueError, match=rf"head\.{name}=True: a head of kind lm"):
        Head("lm", **{name: True})


def test_what_a_model_does_not_have_is_refused(hidden):
    with pytest.raises(ValueError, match=r"head\.kind=none: the model has no head"):
        models.logits({}, hidden, config_of(Head("none")))
    with pytest.raises(ValueError, match=r"head\.kind=lm: the model has no pooler"):
        heads.pooled({}, hidden, config_of(Head("lm")))
    with pytest.raises(ValueError, match="head.kind=reward, not value"):
        models.segment_rewards({}, hidden, config_of(Head("value")), np.ones((B, S)), 1)
