"""What a sweep tries is read from the command line, and every mistake is named."""

import dataclasses

import pytest

from experiments import search_space
from experiments.flags import FlagError
from experiments.recipes import RECIPES
from experiments.tasks import Finetuning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.learning_rate=log:1e-5:1e-3", ("float", 1e-5, 1e-3, None, True, ())),
        ("model.dropout.hidden=0:0.3", ("float", 0.0, 0.3, None, False, ())),
        ("model.dropout.hidden=0:0.3:0.1", ("float", 0.0, 0.3, 0.1, False, ())),
        ("model.mlp_dim=64:256:64", ("int", 64, 256, 64, False, ())),
        ("model.mlp_dim=log:16:256", ("int", 16, 256, None, True, ())),
        ("batch_size=8,16", ("choice", 0, 0, None, False, ("8", "16"))),
        ("optimizer.name=adamw,muon", ("choice", 0, 0, None, False, ("adamw", "muon"))),
        (
            "model.attention.pattern=global|local,global",
            ("choice", 0, 0, None, False, ("global", "local,global")),
        ),
    ],
)
def test_values_are_ranges_or_choices(text, expected):
    found = search_space.parse(text)
    assert found.name == text.partition("=")[0]
    assert dataclasses.astuple(found)[1:] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.learning_rat=1:2", "no such field; nearest: optimizer.learning_rate"),
        ("optimizer.learning_rate=log:0:1", "a logarithmic range needs numbers above 0"),
        ("optimizer.learning_rate=log:1e-5:1e-3:2", "a range is LOW:HIGH"),
        ("optimizer.learning_rate=1:a", "needs numbers of type float"),
        ("model.mlp_dim=1.5:3", "needs numbers of type int"),
        ("batch_size=16:8", "16 is not below 8"),
        ("batch_size=8:16:32", "a step of 32"),
        ("batch_size=8", "give two or more choices"),
        ("optimizer.name=adamw,sgd", "expected one of adamw, muon"),
        ("data.sources=name=a,path=b", "repeated field"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(FlagError, match=message):
        search_space.parse(text)


def test_a_number_is_no_tuple():
    weights = "classification.class_weights"
    with pytest.raises(FlagError, match="expected float"):
        search_space.parse(f"{weights}=0.5:2", Finetuning)
    found = search_space.parse(f"{weights}=1,2|2,1", Finetuning)
    assert found.choices == ("1,2", "2,1")


def test_there_is_something_to_search_once():
    with pytest.raises(FlagError, match="--sweep is missing"):
        search_space.parse_all([])
    with pytest.raises(FlagError, match="--sweep=seed=... is given twice"):
        search_space.parse_all(["seed=1,2", "seed=3:4"])


def test_values_go_into_the_recipe_at_any_depth():
    texts = ["optimizer.learning_rate=log:1e-5:1e-3", "model.tied=true,false", "batch_size=8,16"]
    values = {"optimizer.learning_rate": 2e-4, "model.tied": "true", "batch_size": "16"}
    recipe = search_space.apply(RECIPES["tiny"](), search_space.parse_all(texts), values)
    assert recipe.optimizer.learning_rate == 2e-4
    assert recipe.model.tied
    assert recipe.batch_size == 16
