"""Estimators of the KL divergence: their means, by enumeration of a vocabulary, in float64."""

import math

import jax
import numpy as np
import pytest

from llmjax.objectives import entropy, kl_divergence, kl_estimate

V = 7
KINDS = ("k1", "k2", "k3")


@pytest.fixture(scope="module")
def logits():
    return np.random.RandomState(0).normal(size=(2, V))


def by_hand(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def shares(logits):
    powers = [math.exp(x) for x in logits]
    return np.array([power / sum(powers) for power in powers])


def test_exact_divergence_and_entropy(logits):
    p, q = map(shares, logits)
    with jax.enable_x64(True):
        assert float(kl_divergence(*logits)) == pytest.approx(by_hand(p, q), rel=1e-12)
        assert float(kl_divergence(logits[0], logits[0])) == 0
        expected = -sum(a * math.log(a) for a in p)
        assert float(entropy(logits[0])) == pytest.approx(expected, rel=1e-12)


def test_tokens_of_probability_0_add_nothing(logits):
    excluded = logits.copy()
    excluded[:, 2] = -np.inf
    left = np.delete(logits, 2, axis=1)
    np.testing.assert_allclose(entropy(excluded[0]), entropy(left[0]), rtol=1e-6)
    np.testing.assert_allclose(kl_divergence(*excluded), kl_divergence(*left), rtol=1e-6)
    assert kl_divergence(logits[0], excluded[1]) == np.inf


def test_k3_is_exact_near_the_reference():
    """And never negative, in float32."""
    near = np.linspace(-1e-3, 1e-3, 200, dtype=np.float32)
    exact = near.astype(float)
    expected = exact**2 / 2 - exact**3 / 6 + exact**4 / 24
    found = np.asarray(kl_estimate(near, "k3"))
    np.testing.assert_allclose(found, expected, rtol=0.01)
    assert found.min() >= 0


def test_k1_and_k3_have_no_bias_and_k2_little(logits):
    """Σ p(x) k(x) over all x. Near the reference k2 is right to second order, and k3 below k1."""
    near = logits[0] + 0.05 * logits[1]
    for other, biased in ((2 * logits[1], True), (near, False)):
        p, q = shares(logits[0]), shares(other)
        exact = by_hand(p, q)
        with jax.enable_x64(True):
            found = {kind: np.asarray(kl_estimate(np.log(p / q), kind)) for kind in KINDS}
        means = {kind: p @ values for kind, values in found.items()}
        assert means["k1"] == pytest.approx(exact, rel=1e-12)
        assert means["k3"] == pytest.approx(exact, rel=1e-12)
        assert (abs(means["k2"] / exact - 1) > 0.05) == biased
        assert found["k3"].min() >= 0 and found["k1"].min() < 0
        if not biased:
            spread = {kind: p @ (values - means[kind]) ** 2 for kind, values in found.items()}
            assert max(spread["k2"], spread["k3"]) < 0.01 * spread["k1"]


def test_the_gradients_that_the_estimators_have(logits):
    """Averaged over the policy's samples: of k1 none, of k2 KL(p ‖ q)'s, of k3 KL(q ‖ p)'s."""
    ours, reference = logits
    p, q = shares(ours), shares(reference)

    def mean(kind):
        def loss(ours):
            log_ratio = jax.nn.log_softmax(ours) - np.log(q)
            return p @ kl_estimate(log_ratio, kind)  # samples are p's; no gradient through them

        return jax.grad(loss)(ours)

    def slope(function, step=1e-6):
        ends = [(function(ours + step * e), function(ours - step * e)) for e in np.eye(V)]
        return [(up - down) / (2 * step) for up, down in ends]

    with jax.enable_x64(True):
        np.testing.assert_allclose(mean("k1"), np.zeros(V), atol=1e-12)
        forward = slope(lambda x: by_hand(shares(x), q))
        np.testing.assert_allclose(mean("k2"), forward, atol=1e-8)
        backward = slope(lambda x: by_hand(q, shares(x)))
        np.testing.assert_allclose(mean("k3"), backward, atol=1e-8)


def test_policies_far_apart_are_finite():
    for kind in KINDS:
        value, slope = jax.value_and_grad(lambda x, kind=kind: kl_estimate(x, kind))(-1e4)
        assert np.isfinite(value) and np.isfinite(slope)


def test_other_estimators_are_refused():
    with pytest.raises(ValueError, match="'k4': choose one of k1, k2, k3"):
        kl_estimate(np.zeros(1), "k4")
