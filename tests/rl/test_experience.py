"""Batches of rollouts: each answer as often as there are epochs, in an order that goes on."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from llmjax import models
from llmjax.objectives import log_probs
from llmjax.rl import (
    Credit,
    Experience,
    KLConfig,
    LearningConfig,
    Players,
    Prompt,
    RolloutConfig,
    Sample,
    ScoreConfig,
    WeightedReward,
)
from llmjax.train.state import TrainState
from tests.rl.small import CONFIG, Asked

LENGTH = 12


class Scribe:
    """Writes answers of random tokens; the first one names the prompt, and the rest the call."""

    def __init__(self, settings: RolloutConfig) -> None:
        self.settings, self.calls = settings, 0

    def ready(self, params):
        return params

    def __call__(self, params, prompts: list[Prompt], key: jax.Array) -> list[Sample]:
        self.calls += 1
        random = np.random.RandomState(int(jax.random.bits(key) >> 1))
        found = []
        for prompt in prompts:
            for _ in range(self.settings.samples):
                tokens = random.randint(4, 64, 1 + random.randint(5)).astype(np.int32)
                tokens[0] = prompt.extra["answer"] % 64
                log_probs = -random.rand(len(tokens)).astype(np.float32)
                found.append(Sample(prompt, tokens, "", log_probs, ended=bool(len(tokens) % 2)))
        return found


class Text:
    """Endless batches of two rows of text."""

    place = 0

    def __next__(self) -> dict[str, np.ndarray]:
        self.place += 1
        tokens = np.full((2, LENGTH), self.place, np.int32)
        targets = np.where(np.arange(LENGTH) < 8, tokens, -1).astype(np.int32)
        ids = np.ones_like(tokens)
        return {"tokens": tokens, "targets": targets, "segment_ids": ids, "positions": ids}

    def get_state(self) -> int:
        return self.place

    def set_state(self, state) -> None:
        (self.place,) = state["processes"]


def variety(samples):
    """Groups of prompts of an odd number all earn the same."""
    return [float(s.prompt.extra["answer"] % 2 == 0 and s.tokens.sum() % 7) for s in samples]


def experience(**changes) -> Experience:
    settings = {
        "learning": LearningConfig("grpo", epochs=3),
        "rollouts": RolloutConfig(prompts=6, samples=2),
        "batch_size": 4,
        "seed": 0,
        "steps": 100,
        "mixture": {"varied": WeightedReward(variety)},
        "kl": KLConfig(0.1, target=1.0),
        "config": CONFIG,
    } | changes
    rollouts = settings.pop("rollouts")
    credit = Credit(settings.pop("learning"), settings.pop("kl"), ScoreConfig(scale=True))
    players = Players(settings.pop("config"), lambda params: params, lambda params: params)
    return Experience(
        Asked(rollouts.prompts),
        Scribe(rollouts),
        players,
        settings.pop("mixture"),
        credit,
        length=LENGTH,
        **settings,
    )


@pytest.fixture(scope="module")
def state(draw):
    return TrainState(np.int32(0), draw(models.spec(CONFIG)), {}, jax.random.key(0))


def iteration(of: Experience, state, step: int = 0) -> list[dict[str, np.ndarray]]:
    """All batches of one."""
    if of.due(step):
        of.make(state, step)
    batches = []
    while not of.due(step):
        batches.append(next(of))
    return batches


def test_every_rollout_is_given_as_often_as_there_are_epochs(state):
    seen: list = []
    found = experience(record=lambda step, found: seen.append((step, found)))
    batches = iteration(found, state, 5)
    assert [len(batch["tokens"]) for batch in batches] == [4] * 9  # 12 answers
    epochs = [np.concatenate([b["old_log_probs"] for b in batches[i : i + 3]]) for i in (0, 3, 6)]
    keys = [sorted(row.tobytes() for row in epoch) for epoch in epochs]
    assert len(set(keys[0])) == 12
    assert keys[0] == keys[1] == keys[2]
    orders = [[row.tobytes() for row in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2]
    ((step, metrics),) = seen
    assert step == 5
    assert {"reward", "reward/varied", "answer_tokens", "ended", "kl_per_response"} <= set(metrics)


def test_groups_stay_together_when_rows_are_cut(state):
    """An answer's advantage is over the other to its prompt, wherever that has gone."""
    found = experience(learning=LearningConfig("grpo", epochs=1, whiten=False), kl=KLConfig(0.0))
    batches = iteration(found, state)
    rows = {k: np.concatenate([b[k] for b in batches]) for k in ("targets", "advantages")}
    sums: dict[int, list[float]] = {}
    for targets, advantages in zip(rows["targets"], rows["advantages"], strict=True):
        prompt = int(targets[targets >= 0][0])
        (own,) = set(advantages[targets >= 0].tolist())
        sums.setdefault(prompt, []).append(own)
    assert all(len(pair) == 2 and sum(pair) == pytest.approx(0, abs=1e-5) for pair in sums.values())
    assert any(pair[0] != 0 for pair in sums.values())


def test_seeds_draw_answers_and_order(state, assert_bitwise):
    one, same, other = (iteration(experience(seed=seed), state) for seed in (0, 0, 1))
    assert_bitwise(one, same)
    assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(one, other, strict=True))
    again = experience()
    first = iteration(again, state)
    assert any(
        (a["tokens"] != b["tokens"]).any()
        for a, b in zip(first, iteration(again, state), strict=True)
    )


@pytest.mark.parametrize("given", [0, 4, 9])
def test_goes_on_from_its_state_anywhere(state, assert_bitwise, given):
    """Within an iteration, before the first, and after the last batch of one; with text too."""
    whole, cut = (experience(extra=Text()) for _ in range(2))
    expected = [*iteration(whole, state), *iteration(whole, state), *iteration(whole, state)]
    found = []
    if given:
        cut.make(state, 0)
        found = [next(cut) for _ in range(given)]
    saved = cut.get_state()
    again = experience(extra=Text())
    again.set_state(saved)
    assert again.get_state() == saved
    while len(found) < len(expected):
        found += iteration(again, state)
    assert_bitwise(found, expected)


def test_any_number_of_processes_goes_on(state, assert_bitwise):
    """Each had saved the same, but for its own place in the text."""
    one, other = experience(), experience()
    one.make(state, 0)
    next(one)
    saved = one.get_state()
    other.set_state({"processes": [saved, saved]})
    assert_bitwise(next(other), next(one))


def test_text_is_joined_below_and_has_no_actions(state):
    found = experience(extra=Text())
    for number, batch in enumerate(iteration(found, state), start=1):
        assert len(batch["tokens"]) == 6
        np.testing.assert_array_equal(batch["tokens"][4:], number)
        weights = batch["pretrain_weights"]
        assert not weights[:4].any()
        np.testing.assert_array_equal(weights[4:], (batch["targets"][4:] >= 0))
        assert not batch["advantages"][4:].any()
        assert (batch["segment_ids"][4:] == 1).all()


@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_dynamic_sampling_keeps_groups_that_teach_something(state, rounds):
    """At most half of all prompts do: one list more fills up in part, and some wholly.

    What is reported are the rewards of all answers, not only of those that differ.
    """
    judged: list[int] = []
    rewards: list[float] = []
    seen: list[dict[str, float]] = []

    def counted(samples):
        judged.append(len(samples))
        rewards.extend(variety(samples))
        return rewards[-len(samples) :]

    learning = LearningConfig("dr_grpo", epochs=1, rounds=rounds, whiten=False)
    mixture = {"varied": WeightedReward(counted)}
    found = experience(
        learning=learning,
        mixture=mixture,
        kl=KLConfig(0.0),
        record=lambda step, found: seen.append(found),
    )
    batches = iteration(found, state)
    assert seen[0]["reward"] == pytest.approx(np.mean(rewards))
    assert seen[0]["reward/varied"] == pytest.approx(np.mean(rewards))
    written = found._writer.calls
    assert written == len(judged)  # nothing is judged twice
    assert set(judged) == {12}
    rows = {k: np.concatenate([b[k] for b in batches]) for k in ("targets", "advantages")}
    assert len(rows["targets"]) == 12
    prompts = [int(targets[targets >= 0][0]) for targets in rows["targets"]]
    assert sorted(np.unique(prompts, return_counts=True)[1]) == [2] * 6
    taught = {p for p, row in zip(prompts, rows["advantages"], strict=True) if row.any()}
    assert all(prompt % 2 == 0 for prompt in taught)
    if rounds == 5:
        assert len(taught) == 6
        assert 2 <= written <= 5
    else:
        assert written == rounds + 1
        assert len(taught) > 3 if rounds else len(taught) <= 3


def test_log_probs_with_a_capacity_of_experts_are_the_trainers(draw):
    """The sampler's are of a model that drops no tokens; a new policy has ratios of 1."""
    experts = models.Experts(count=4, dim=8, capacity=0.5)
    config = dataclasses.replace(CONFIG, experts=experts)
    state = TrainState(np.int32(0), draw(models.spec(config)), {}, jax.random.key(0))
    batch = iteration(experience(config=config), state)[0]
    found = jax.jit(functools.partial(log_probs, config=config))(state.params, batch).targets
    np.testing.assert_allclose(batch["old_log_probs"], found, rtol=1e-5, atol=1e-5)


def test_an_answer_without_an_end_may_be_settled(state):
    """Then groups differ by that, too."""
    learning = LearningConfig("dr_grpo", epochs=1, rounds=1, unended=-1.0, whiten=False)
    same = {"same": WeightedReward(lambda samples: np.zeros(len(samples)))}
    found = experience(learning=learning, mixture=same, kl=KLConfig(0.0))
    batches = iteration(found, state)
    rows = {k: np.concatenate([b[k] for b in batches]) for k in ("targets", "advantages")}
    ended = (rows["targets"] >= 0).sum(axis=1) % 2 == 1
    own = rows["advantages"].sum(axis=1)
    assert (own != 0).any()
    assert (own[ended] >= 0).all()
    assert (own[~ended] <= 0).all()


def test_a_guard_ends_the_run_and_the_last_step_needs_nothing(state):
    found = experience(guard=lambda step, found: step > 3, steps=20)
    assert found.due(19)
    assert not found.due(20)
    assert not found(types.SimpleNamespace(state=state, step=3))
    assert found(types.SimpleNamespace(state=state, step=4))


def test_what_does_not_fit_is_refused_at_once():
    with pytest.raises(ValueError, match="batch_size=5 does not divide the 12 answers"):
        experience(batch_size=5)
    with pytest.raises(ValueError, match="rollouts.samples=1: grpo compares"):
        experience(rollouts=RolloutConfig(prompts=8), batch_size=4)
    with pytest.raises(ValueError, match="no rollouts are left"):
        next(experience())
