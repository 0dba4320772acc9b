"""From rewards to advantages, against loops over single answers in float64."""

import jax
import numpy as np
import pytest

from llmjax.rl import Credit, KLConfig, LearningConfig, Memory, ScoreConfig, learn
from llmjax.rl.samples import rows
from tests.rl.small import drawn

SIZES = [(2, 3), (1, 5), (4, 1), (3, 2), (2, 6), (1, 1)]
LENGTH, GROUP = 10, 2
KL = KLConfig(0.2, target=3.0, rate=0.5, bound=0.2)
SCORING = ScoreConfig(scale=True, clip=1.5)


def given(iteration: int) -> tuple[list, dict[str, np.ndarray], np.ndarray]:
    random = np.random.RandomState(10 + iteration)
    samples = drawn(SIZES)
    made = rows(samples, LENGTH)
    shape = made["targets"].shape
    made["reference_log_probs"] = -random.rand(*shape).astype(np.float32)
    made["old_values"] = random.randn(*shape).astype(np.float32)
    return samples, made, (3 * random.randn(len(SIZES))).astype(np.float32)


def estimate(apart: float, kind: str) -> float:
    return {"k1": apart, "k2": apart**2 / 2, "k3": np.exp(-apart) - 1 + apart}[kind]


def loop(learning: LearningConfig, iterations: int):
    """The same, token by token; what each iteration gives."""
    coefficient, seen = KL.coefficient, []
    for number in range(iterations):
        samples, made, scores = given(number)
        seen += scores.astype(float).tolist()
        advantages, returns = np.zeros((2, len(samples), LENGTH))
        earned, divergence = [], []
        for row, sample in enumerate(samples):
            first, count = len(sample.prompt.tokens) - 1, len(sample.tokens)
            places = range(first, first + count)
            apart = [
                float(made["old_log_probs"][row, i]) - float(made["reference_log_probs"][row, i])
                for i in places
            ]
            rewards = [-coefficient * estimate(x, learning.kl) for x in apart]
            rewards[-1] += np.clip(float(scores[row]) / np.std(seen, ddof=1), -1.5, 1.5)
            later_value = later = 0.0
            for i, reward in zip(reversed(places), reversed(rewards), strict=True):
                value = float(made["old_values"][row, i])
                delta = reward + learning.discount * later_value - value
                later = delta + learning.discount * learning.decay * later
                later_value = value
                advantages[row, i], returns[row, i] = later, later + value
            earned.append(sum(rewards))
            divergence.append(sum(apart))
        acts = made["targets"] >= 0
        if learning.compares:
            for row, own in enumerate(earned):
                group = earned[row // GROUP * GROUP : row // GROUP * GROUP + GROUP]
                by_answer = own - np.mean(group)
                if learning.advantages == "grpo":
                    by_answer /= np.std(group, ddof=1) + 1e-6
                if learning.advantages == "rloo":
                    by_answer = own - np.sum(group, initial=-own) / (GROUP - 1)
                advantages[row] = np.where(acts[row], by_answer, 0)
        if learning.whiten and not learning.compares:
            every = advantages[acts]
            advantages = np.where(acts, (advantages - every.mean()) / (every.std() + 1e-6), 0)
        mean = np.mean(divergence)
        yield advantages, returns, coefficient, mean, np.sum(divergence) / acts.sum()
        coefficient *= 1 + KL.rate * np.clip(mean / KL.target - 1, -KL.bound, KL.bound)


@pytest.mark.parametrize(
    "learning",
    [
        LearningConfig("gae", discount=0.9, decay=0.8),
        LearningConfig("gae", whiten=False, kl="k3"),
        LearningConfig("grpo"),
        LearningConfig("rloo", kl="k2"),
    ],
    ids=lambda learning: f"{learning.advantages}-{learning.kl}",
)
def test_learn_equals_a_loop_over_tokens(learning):
    memory = Memory.new(KL)
    for number, expected in enumerate(loop(learning, 3)):
        _, made, scores = given(number)
        credit = Credit(learning, KL, SCORING)
        found, said, memory = learn(made, scores, memory, credit, group=GROUP)
        advantages, returns, coefficient, per_response, per_token = expected
        np.testing.assert_allclose(found["advantages"], advantages, rtol=2e-5, atol=2e-5)
        if not learning.compares:
            np.testing.assert_allclose(found["returns"], returns, rtol=1e-5, atol=1e-5)
        assert ("returns" in found) != learning.compares
        assert float(said["kl_coefficient"]) == pytest.approx(coefficient, rel=1e-6)
        assert float(said["kl_per_response"]) == pytest.approx(per_response, rel=1e-5)
        assert float(said["kl_per_token"]) == pytest.approx(per_token, rel=1e-5)
    assert coefficient != KL.coefficient  # it was adapted


def test_a_divergence_is_a_penalty():
    """Answers of one worth: that which the reference finds less likely is the worse."""
    _, made, _ = given(0)
    made["reference_log_probs"] = made["old_log_probs"].copy()
    made["reference_log_probs"][::2] -= 1.0
    found, said, _ = learn(
        made,
        np.ones(len(SIZES), np.float32),
        Memory.new(KL),
        Credit(LearningConfig("dr_grpo"), KL),
        group=GROUP,
    )
    assert said["kl_per_response"] > 0
    sums = np.asarray(jax.device_get(found["advantages"])).sum(axis=1)
    assert (sums[::2] < 0).all()
    assert (sums[1::2] > 0).all()


def test_answers_of_a_policy_without_a_reference_earn_their_scores_alone():
    _, made, scores = given(0)
    del made["reference_log_probs"]
    free = KLConfig(0.0)
    credit = Credit(LearningConfig("dr_grpo"), free)
    found, said, memory = learn(made, scores, Memory.new(free), credit, group=GROUP)
    groups = np.asarray(scores).reshape(-1, GROUP)
    over = (groups - groups.mean(axis=1, keepdims=True)).reshape(-1, 1)
    there = made["targets"] >= 0
    np.testing.assert_allclose(found["advantages"], np.where(there, over, 0), rtol=1e-5, atol=1e-6)
    assert set(said) == {"kl_coefficient"}
    assert memory.coefficient == 0


def test_bad_settings_are_refused():
    for settings, message in (
        ({"discount": 1.5}, r"learning.discount=1.5: must be in \[0, 1\]"),
        ({"epochs": 0}, "learning.epochs=0"),
        ({"rounds": 1}, "gae does not compare answers"),
        ({"advantages": "rloo", "decay": 0.9}, "learning.decay=0.9: only for gae; rloo"),
        ({"advantages": "none"}, "learning.advantages"),
    ):
        with pytest.raises(ValueError, match=message):
            LearningConfig(**settings)
