"""A generator's draws follow its softmax and land where tokens were masked, on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import lookup, mesh
from llmjax.objectives import masking, replacement

B, S, D, V = 16, 24, 8, 32


@pytest.fixture(scope="module")
def masked() -> dict[str, np.ndarray]:
    """Originals, a masked batch of them with rows of unequal length, and logits."""
    random = np.random.default_rng(0)
    tokens = random.integers(4, V, (B, S)).astype(np.int32)
    segments = (np.arange(S) < np.arange(B)[:, None] * 2).astype(np.int32)
    fixed = {"mask_id": 3, "vocab_size": V, "special_ids": (0, 1, 2)}
    config = masking.MaskingConfig(rate=0.3)
    mask = functools.partial(masking.mask_tokens, config=config, **fixed)
    found = jax.device_get(jax.jit(mask)(jax.random.key(1), tokens, segment_ids=segments))
    # Peaked at the originals, so that many draws are original and many are not.
    logits = 3.0 * (found.targets_at[..., None] == np.arange(V))
    logits = (logits + random.normal(size=logits.shape)).astype(np.float32)
    return {
        "originals": tokens,
        "tokens": found.tokens,
        "targets": found.targets,
        "positions": found.positions,
        "targets_at": found.targets_at,
        "logits": logits,
        "hidden": random.normal(size=(B, S, D)).astype(np.float32),
    }


def sample(key, rows, name="tokens"):
    given = (rows[name] for name in ("logits", name, "positions", "targets_at"))
    return jax.jit(replacement.sample_replacements)(key, *given)


def test_flags_say_where_tokens_differ_from_the_original(masked):
    corrupted, replaced = map(np.asarray, sample(jax.random.key(2), masked))
    np.testing.assert_array_equal(replaced, corrupted != masked["originals"])
    chosen = masked["targets"] >= 0
    np.testing.assert_array_equal(corrupted[~chosen], masked["originals"][~chosen])
    # Some draws are the original, and count as such.
    assert 0 < replaced.sum() < chosen.sum()
    assert not chosen[0].any()
    # Before masking or after: the rows differ only where the draws are written.
    unmasked = sample(jax.random.key(2), masked, "originals")
    jax.tree.map(np.testing.assert_array_equal, unmasked, (corrupted, replaced))


def test_a_certain_generator_restores_the_original(masked):
    certain = 1e4 * (masked["targets_at"][..., None] == np.arange(V)).astype(np.float32)
    corrupted, replaced = sample(jax.random.key(3), masked | {"logits": certain})
    np.testing.assert_array_equal(corrupted, masked["originals"])
    assert not np.any(replaced)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_draws_follow_the_softmax(dtype):
    draws, size = 20_000, 8
    row = jnp.asarray(np.random.default_rng(4).normal(size=size), dtype)
    logits = jnp.broadcast_to(row, (draws // 100, 100, size))
    tokens = jnp.zeros((draws // 100, 100), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(100), tokens.shape)
    drawn, _ = jax.jit(replacement.sample_replacements)(
        jax.random.key(5), logits, tokens, positions, tokens
    )
    weights = np.exp(np.asarray(row, np.float64))
    expected = draws * weights / weights.sum()
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=size)
    # The 99.9th percentile of chi-square with 7 degrees of freedom.
    assert np.sum((counts - expected) ** 2 / expected) < 24.3


def test_positions_are_gathered_and_their_gradient_returns_to_them(masked):
    hidden, positions = masked["hidden"], masked["positions"]
    found = jax.jit(lookup.gather_positions)(hidden, positions)
    expected = np.stack([row[at] for row, at in zip(hidden, positions, strict=True)])
    np.testing.assert_array_equal(found, expected)
    weights = np.random.default_rng(6).normal(size=found.shape).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(weights * lookup.gather_positions(x, positions)))
    back = np.zeros_like(hidden)
    for row in range(B):
        np.add.at(back[row], positions[row], weights[row])
    np.testing.assert_allclose(gradient(hidden), back, rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_the_generator(masked):
    rest = (masked["tokens"], masked["positions"], masked["targets_at"])

    def loss(logits):
        corrupted, replaced = replacement.sample_replacements(jax.random.key(7), logits, *rest)
        return jnp.sum(corrupted.astype(jnp.float32) * jnp.where(replaced, 1.0, 2.0))

    np.testing.assert_array_equal(jax.grad(loss)(masked["logits"]), 0.0)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_every_mesh_equals_one_device(sizes, masked):
    def both(key, hidden, logits, tokens, positions, targets_at):
        def total(hidden):
            return jnp.sum(lookup.gather_positions(hidden, positions) ** 2)

        drawn = replacement.sample_replacements(key, logits, tokens, positions, targets_at)
        return drawn, lookup.gather_positions(hidden, positions), jax.grad(total)(hidden)

    names = ("hidden", "logits", "tokens", "positions", "targets_at")
    alone = jax.jit(both)(jax.random.key(8), *(masked[name] for name in names))
    axes = {"hidden": ("batch", "sequence", None), "logits": ("batch", None, "vocab")}
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(*sizes))):
        placed = (
            jax.device_put(masked[name], mesh.named_sharding(axes.get(name, ("batch", None))))
            for name in names
        )
        spread = jax.jit(both)(jax.random.key(8), *placed)
        assert spread[0][0].sharding.spec == mesh.named_sharding(("batch", None)).spec
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(spread), jax.device_get(alone))


def test_what_does_not_fit_is_refused(masked):
    with pytest.raises(ValueError, match=r"not \(16, 8\) and \(16, 7\)"):
        sample(jax.random.key(0), masked | {"targets_at": masked["targets_at"][:, :7]})
