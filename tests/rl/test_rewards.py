"""Mixtures of rewards, what is refused of them, and the verifier."""

import dataclasses

import numpy as np
import pytest

from llmjax.rl import Prompt, Sample, WeightedReward, load_function, score
from llmjax.rl.rewards import matches_answer


def answers(*texts: str, answer: object = "42") -> list[Sample]:
    prompt = Prompt(np.array([1]), "What?", {"answer": answer})
    return [Sample(prompt, np.array([2]), text, np.zeros(1), ended=True) for text in texts]


def length(samples):
    return [len(sample.text) for sample in samples]


def test_a_mixture_is_a_weighted_sum():
    samples = answers("a", "bcd")
    mixture = {
        "length": WeightedReward(length, -0.5),
        "one": WeightedReward(lambda samples: np.ones(2), 3.0),
    }
    found = score(samples, mixture)
    np.testing.assert_allclose(found.total, [2.5, 1.5])
    assert found.total.dtype == np.float32
    np.testing.assert_allclose(found.parts["length"], [1, 3])  # without weights
    np.testing.assert_allclose(found.parts["one"], [1, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], r"reward 'mine' returned \(1,\) for 2 samples"),
        ([[1.0], [2.0]], r"returned \(2, 1\) for 2"),
        (1.0, r"returned \(\) for 2"),
        ([1.0, float("nan")], "reward 'mine' returned nan for 'second'"),
        ([-float("inf"), 0.0], "returned -inf for 'first'"),
        ([1.0, None], "reward 'mine' returned nan for 'second'"),
        (["good", "bad"], "reward 'mine' must return numbers"),
    ],
)
def test_what_is_no_number_for_each_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        score(answers("first", "second"), {"mine": WeightedReward(lambda samples: given)})


def test_functions_are_loaded_by_name():
    assert load_function("llmjax.rl.rewards:matches_answer") is matches_answer
    for path, message in (
        ("llmjax.rl.rewards", "has no attribute ''"),
        ("llmjax.rl.rewards:none", "has no attribute 'none'"),
        ("llmjax.no_such:x", "No module named 'llmjax.no_such'"),
        ("", "Empty module name"),
        (".relative:x", "package"),
        ("runs/reward", "or the folder of a reward model's run"),
    ):
        with pytest.raises(ValueError, match=message):
            load_function(path)
    with pytest.raises(ValueError, match="is not a function"):
        load_function("llmjax.rl.samples:IGNORE")


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("42", ("42", "It is 42.", "6*7=42", "$42.00", "**42**", r"\boxed{42}"), ("42 or 43", "x")),
        (1000, ("1,000", "first 3, then 1000!"), ("1,000 - 1", "1.000", "1,0000")),
        ("0.5", (".5", "0.50", "5e0? no: +.5"), ("5", "-0.5")),
        ("-3", ("-3", "x = -3"), ("3", "7-3")),  # a minus between two numbers is no sign
        (4, ("(3,4)", "3,4", "f(1,000,4)"), ("34", "3,004")),
        ("yes", ("Yes.", "I say 3 times: yes!"), ("no", "", "yes, 4")),
    ],
)
def test_the_verifier_compares_last_numbers_or_words(answer, right, wrong):
    assert matches_answer(answers(*right, answer=answer)) == [1.0] * len(right)
    assert matches_answer(answers(*wrong, answer=answer)) == [0.0] * len(wrong)


def test_the_verifier_names_a_prompt_without_an_answer():
    (sample,) = answers("x")
    sample = dataclasses.replace(sample, prompt=Prompt(np.array([1]), "What?"))
    with pytest.raises(ValueError, match="'What\\?' has no field answer"):
        matches_answer([sample])
