"""The penalty of each token, the controller of its weight, and scores on a scale that stays."""

import functools

import jax
import numpy as np
import pytest

from llmjax.rl import (
    KLConfig,
    RunningMoments,
    ScoreConfig,
    next_coefficient,
    normalize_scores,
    penalized_rewards,
)


def test_rewards_of_two_responses_in_a_row():
    """The score at the last action, wherever that is; the penalty lowers every action's reward."""
    segment_ids = np.array([[0, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    actions = np.array([[0, 0, 1, 1, 0, 1, 0, 0], [0, 1, 0, 1, 1, 0, 0, 0]], bool)
    log_probs = np.full((2, 8), -1.0)
    reference = log_probs - np.arange(8) / 10  # the policy is the likelier by 0, 0.1, …
    scores = np.array([[5.0, 7.0], [-3.0, 100.0]])  # the last is of a response that is not there
    found = penalized_rewards(scores, log_probs, reference, actions, segment_ids, 2.0)
    expected = [[0, 0, -0.4, 5 - 0.6, 0, 7 - 1.0, 0, 0], [0, -0.2, 0, -0.6, -3 - 0.8, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    second = penalized_rewards(scores, log_probs, reference, actions, segment_ids, 2.0, "k2")
    np.testing.assert_allclose(second[1], [0, -0.01, 0, -0.09, -3 - 0.16, 0, 0, 0], atol=1e-6)


def test_the_controller_of_ziegler():
    """β grows where the divergence is above its target, by at most 2 % a batch, and falls below."""
    config = KLConfig(0.1, target=6.0, rate=0.1)
    for kl, factor in ((6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (5.4, 0.99), (0.0, 0.98)):
        assert float(next_coefficient(0.1, kl, config)) == pytest.approx(0.1 * factor, rel=1e-6)
    assert float(next_coefficient(0.3, 60.0, KLConfig(0.1))) == pytest.approx(0.3)


def test_the_controller_finds_the_coefficient_that_meets_the_target():
    """Of a policy whose divergence is 0.6 / β."""
    step = jax.jit(functools.partial(next_coefficient, config=KLConfig(1.0, target=6.0)))
    coefficient = 1.0
    for _ in range(400):
        coefficient = step(coefficient, 0.6 / coefficient)
    assert float(coefficient) == pytest.approx(0.1, rel=0.02)


CONFIGS = (ScoreConfig(), ScoreConfig(True, True, 1.5), ScoreConfig(scale=True))


@pytest.mark.parametrize("config", CONFIGS)
def test_scores_are_scaled_by_all_that_were_seen(config):
    batches = [np.array([3.0, -1.0, 8.0]), np.array([4.0]), np.array([[0.0, 2.0], [9.0, -6.0]])]
    moments, seen = RunningMoments.new(), []
    for batch in batches:
        found, moments = normalize_scores(batch, moments, config)
        seen.extend(batch.ravel())
        expected = batch - np.mean(seen) * config.center
        expected = expected / np.std(seen, ddof=1) if config.scale else expected
        expected = np.clip(expected, -1.5, 1.5) if config.clip else expected
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert float(moments.count) == 8


def test_one_score_alone_has_no_deviation():
    found, _ = normalize_scores(np.array([3.0]), RunningMoments.new(), ScoreConfig(scale=True))
    np.testing.assert_allclose(found, [3.0])


def test_equal_scores_have_no_deviation():
    """Not in several batches either; a rounding error would scale them by millions."""
    moments = RunningMoments.new()
    for count in (3, 8, 5):
        scores = np.full(count, 2.7, np.float32)
        found, moments = normalize_scores(scores, moments, ScoreConfig(scale=True))
        np.testing.assert_array_equal(found, scores)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="would stay 0"):
        KLConfig(0.0, target=1.0)
    with pytest.raises(ValueError, match="kl.target=-1"):
        KLConfig(target=-1.0)
    with pytest.raises(ValueError, match="their product must be below 1"):
        KLConfig(target=1.0, rate=2.0, bound=0.5)
    with pytest.raises(ValueError, match="scores.clip=-1"):
        ScoreConfig(clip=-1.0)
