"""The report on a reward model, pair by pair, from rewards of responses alone."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from llmjax import models
from llmjax.evaluation import evaluate_reward
from tests.objectives import comparisons

CONFIG = dataclasses.replace(comparisons.with_head("reward"), dtype="float32")
ROWS = comparisons.examples((3, 2, 2, 1, 2, 3, 2, 0) * 2, seed=1)


@pytest.fixture(scope="module")
def params(draw):
    return draw(models.spec(CONFIG))


@pytest.fixture(scope="module")
def responses(params):
    """(reward, length) of each response of each row."""
    states = comparisons.states_alone(params, ROWS, CONFIG)
    return [
        [
            (float(x[-1] @ params["head"]["out"][:, 0]), len(response))
            for x, (_, response) in zip(*pair, strict=True)
        ]
        for pair in zip(states, ROWS, strict=True)
    ]


def test_the_report_is_that_of_pairs_one_by_one(params, responses):
    batch = comparisons.as_rows(ROWS)
    halves = [{name: x[part] for name, x in batch.items()} for part in np.split(np.arange(16), 2)]
    report = evaluate_reward(CONFIG, params, halves, responses=3, bins=4)

    bins = [[0.0, 0.0, 0.0] for _ in range(4)]  # weight, confidence, right
    sides = {1: [0.0, 0.0], 0: [0.0, 0.0], -1: [0.0, 0.0]}  # weight, right
    products = [0.0, 0.0, 0.0]
    rows = [list(itertools.combinations(row, 2)) for row in responses]
    rows = [row for row in rows if row]
    for row in rows:
        for (better, long), (worse, short) in row:
            weight, right = 1 / len(row), float(better > worse)
            confidence = 1 / (1 + math.exp(-abs(better - worse)))
            part = bins[min(int((confidence - 0.5) / 0.125), 3)]
            for i, value in enumerate((1.0, confidence, right)):
                part[i] += weight * value
            side = sides[int(np.sign(long - short))]
            side[0] += weight
            side[1] += weight * right
            lead, longer = better - worse, long - short
            for i, value in enumerate((lead * lead, longer * longer, lead * longer)):
                products[i] += weight * value
    count, error = len(rows), sum(abs(part[1] - part[2]) for part in bins)
    assert report.rows == count == 12
    assert all(part[0] for part in bins) and all(side[0] for side in sides.values())
    unequal = sides[1][0] + sides[-1][0]
    chosen = sides[1][1] + sides[-1][0] - sides[-1][1]
    everyone = np.array([response for row in responses for response in row])
    expected = {
        "accuracy": sum(side[1] for side in sides.values()) / count,
        "calibration_error": error / count,
        "longer_share": sides[1][0] / unequal,
        "longer_chosen": chosen / unequal,
        "accuracy_longer": sides[1][1] / sides[1][0],
        "accuracy_shorter": sides[-1][1] / sides[-1][0],
        "length_correlation": np.corrcoef(everyone.T)[0, 1],
        "length_correlation_within": products[2] / math.sqrt(products[0] * products[1]),
    }
    assert set(report.metrics()) == {"rows", *expected}
    for name, value in expected.items():
        assert report.metrics()[name] == pytest.approx(value, abs=1e-5), name
    for name, index in (("confidence", 1), ("right", 2)):
        curve = [part[index] / part[0] for part in bins]
        np.testing.assert_allclose(getattr(report, name), curve, atol=1e-5)
    np.testing.assert_allclose(report.share, [part[0] / count for part in bins], atol=1e-6)


def test_rewards_by_length_alone_are_told(params):
    """A head that counts: where every better response is the shorter one, it is never right."""
    random = np.random.RandomState(0)
    rows = [
        [([5], [3] * random.randint(1, 4)), ([5], [3] * random.randint(5, 9))] for _ in "123456"
    ]
    batch = comparisons.as_rows(rows)
    counting = {name: x for name, x in params.items() if name != "head"}
    # With one token all over, states differ by their places; the reward is learned from them.
    states = [x[-1] for row in comparisons.states_alone(params, rows, CONFIG) for x in row]
    lengths = [len(response) for row in rows for _, response in row]
    out = np.linalg.lstsq(np.array(states), np.array(lengths, np.float32), rcond=None)[0]
    counting["head"] = {"out": out[:, None].astype(np.float32)}
    report = evaluate_reward(CONFIG, counting, [batch])
    assert report.accuracy == report.accuracy_shorter == report.longer_share == 0
    assert report.longer_chosen == 1 and math.isnan(report.accuracy_longer)
    assert report.length_correlation > 0.99 and report.length_correlation_within > 0.99
    assert report.calibration_error > 0.9


def test_nothing_to_evaluate_is_an_error(params):
    batch = comparisons.as_rows([row[:1] for row in ROWS])
    with pytest.raises(ValueError, match="no row of the batches has two responses"):
        evaluate_reward(CONFIG, params, [batch])
