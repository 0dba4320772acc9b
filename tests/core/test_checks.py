"""A name that does not exist is answered with those that are like it."""

import pytest

from llmjax.checks import nearest


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("stesp", "steps"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimiser.learning_rat", "optimizer.learning_rate"),
        ("layers", "model.num_layers"),
        ("model.vocab", "model.vocab_size"),
    ],
)
def test_nearest(name: str, best: str) -> None:
    names = ["steps", "optimizer.learning_rate", "model.num_layers", "model.vocab_size", "seed"]
    assert nearest(name, names)[0] == best
    assert nearest("qqqqq", names) == []


def test_nearest_path() -> None:
    paths = ["layers/attention/query", "layers/mlp/up", "head"]
    assert nearest("atention/query", paths, separator="/")[0] == "layers/attention/query"
