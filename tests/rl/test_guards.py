"""Each alarm when there is cause, and none without."""

import json
import warnings

import numpy as np
import pytest

from llmjax.rl import Guard, GuardConfig

CALM = {"answer_tokens": 20.0, "repetition": 0.1, "kl_per_response": 2.0}


def guard(**settings) -> Guard:
    return Guard(GuardConfig(**settings))


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ({"repetition": 0.6}, "repeat themselves"),
        ({"answer_tokens": 61.0}, "grew from 20 to 61 tokens"),
        ({"kl_per_response": 10.5}, "10.50 nats from the reference, over guards.kl_budget=10"),
    ],
)
def test_an_alarm_of_each_kind_and_once(seen, message):
    watch = guard(kl_budget=10.0)
    assert not watch.iteration(0, CALM)
    with pytest.warns(UserWarning, match=message):
        ends = watch.iteration(8, CALM | seen)
    assert ends == ("kl_per_response" in seen)
    watch.iteration(16, CALM | seen)
    assert [step for step, _ in watch.alarms] == [8]


def test_the_gold_reward_falls_while_the_reward_rises():
    watch = guard(gold_drop=0.1)
    assert not watch.evaluation(0, 1.0, 0.2, 0.01)
    assert not watch.evaluation(10, 2.0, 0.5, 0.01)  # the best
    assert not watch.evaluation(20, 3.0, 0.42, 0.01)  # by less than it may
    assert not watch.evaluation(30, 1.9, 0.1, 0.01)  # as the reward has
    with pytest.warns(UserWarning, match="fell from 0.500 to 0.300 while the reward rose from 2"):
        assert not watch.evaluation(40, 3.0, 0.3, 0.01)
    assert [step for step, _ in watch.alarms] == [40]


def test_any_alarm_ends_a_run_that_wants_it():
    watch = guard(stop=True)
    assert not watch.iteration(0, CALM)
    with pytest.warns(UserWarning):
        assert watch.evaluation(0, 0.0, 1.0) or watch.evaluation(10, 1.0, 0.0)
    assert watch.ended == watch.alarms[0][1]
    assert watch.iteration(20, CALM)


def test_no_alarm_without_cause():
    """A policy that gets better by gold too, seen through the noise of 64 answers.

    One run in twenty may be unlucky.
    """
    random = np.random.RandomState(0)
    alarms = 0
    for _ in range(400):
        watch = guard(kl_budget=10.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in range(20):
                gold = 0.2 * step / 20 + random.normal(0, 0.05)
                watch.iteration(
                    step, {name: x * random.uniform(0.7, 1.4) for name, x in CALM.items()}
                )
                watch.evaluation(step, float(step), gold, 0.05)
        alarms += len(watch.alarms)
    assert alarms <= 400 / 20


def test_a_budget_that_was_spent_stays_so_until_it_is_raised():
    first = guard(kl_budget=10.0)
    with pytest.warns(UserWarning):
        first.iteration(0, CALM | {"kl_per_response": 12.0})
        first.iteration(0, CALM | {"kl_per_response": 12.0, "repetition": 0.9})
    first.evaluation(0, 1.0, 0.5, 0.1)
    state = json.loads(json.dumps(first.get_state()))
    again = guard(kl_budget=10.0)
    again.set_state(state)
    assert again.ended == first.ended != ""
    assert again.alarms == first.alarms
    assert json.loads(json.dumps(again.get_state())) == state
    raised = guard(kl_budget=20.0)
    raised.set_state(state)
    assert raised.ended == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raised.iteration(8, CALM | {"repetition": 0.9})  # known
    with pytest.warns(UserWarning, match="grew from 20"):
        raised.iteration(8, CALM | {"answer_tokens": 80.0})
    with pytest.warns(UserWarning, match="fell from 0.500"):
        raised.evaluation(8, 2.0, 0.0, 0.0)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="guards.kl_budget=-1"):
        GuardConfig(kl_budget=-1.0)
    with pytest.raises(ValueError, match="guards.growth=0.5: must be at least 1"):
        GuardConfig(growth=0.5)
