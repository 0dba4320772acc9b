"""One configuration over all methods: what trains, and what is refused."""

import jax
import numpy as np
import pytest

from llmjax import models, tree
from llmjax import spec as specs
from llmjax.peft import AdapterConfig, LoraConfig, MethodConfig, PrefixConfig, method
from llmjax.spec import is_param

LISTED = models.llama(
    vocab_size=16,
    num_layers=3,
    embed_dim=64,
    num_heads=2,
    mlp_dim=64,
    max_length=8,
    scan_layers=False,
)
METHODS = {
    "lora": MethodConfig(name="lora", lora=LoraConfig(rank=2)),
    "qlora": MethodConfig(name="lora", quantize="int8", lora=LoraConfig(rank=2)),
    "adapter": MethodConfig(name="adapter", adapter=AdapterConfig(dim=4)),
    "ia3": MethodConfig(name="ia3"),
    "prefix": MethodConfig(name="prefix", prefix=PrefixConfig(length=2)),
}


def trained(config: MethodConfig, model=LISTED, **others) -> tuple[set[str], set[str]]:
    """Paths that train, and the others."""
    declared = method.spec(models.spec(model), model, config)
    predicate = method.trains(declared, config, **others)
    halves = tree.partition(declared, predicate)
    one, other = (set(tree.paths(half, is_leaf=is_param)) for half in halves)
    assert one | other == set(tree.paths(declared, is_leaf=is_param))
    return one, other


def test_all_is_trained_by_default():
    declared = models.spec(LISTED)
    assert method.trains(declared, MethodConfig()) is None
    assert method.spec(declared, LISTED, MethodConfig()) is declared


def test_first_layers_are_frozen_and_what_is_below_them():
    trains, rest = trained(MethodConfig(frozen_layers=2))
    assert {path.partition("/")[0] for path in trains} == {"layers", "final_norm", "head"}
    assert {path.split("/")[1] for path in trains if path.startswith("layers")} == {"2"}
    assert "embedding" in rest
    assert {path.split("/")[1] for path in rest if path.startswith("layers")} == {"0", "1"}


def test_patterns_say_what_trains_or_does_not():
    norms, rest = trained(MethodConfig(only="norm"))
    assert norms
    assert all("norm" in path for path in norms)
    assert not any("norm" in path for path in rest)
    assert trained(MethodConfig(frozen="norm")) == (rest, norms)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_added_trains_and_a_new_head(name):
    base = set(tree.paths(models.spec(LISTED), is_leaf=is_param))
    added, rest = trained(METHODS[name])
    assert added.isdisjoint(base)
    assert {path.split("/base")[0] for path in rest} == base
    with_head, _ = trained(METHODS[name], also="^head(/|$)")
    assert with_head == added | {"head"}


@pytest.mark.parametrize("name", METHODS)
def test_adapt_keeps_the_model_and_draws_a_head_that_is_not_there(name, draw):
    declared = method.spec(models.spec(LISTED), LISTED, METHODS[name])
    params = draw(models.spec(LISTED))
    given = {name: node for name, node in params.items() if name != "head"}
    plain = models.spec(LISTED)
    made = method.adapt(given, plain, declared, METHODS[name], jax.random.key(0))
    shapes = specs.abstract(declared)
    assert jax.tree.structure(made) == jax.tree.structure(shapes)
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, shapes)
    np.testing.assert_array_equal(made["embedding"], params["embedding"])
    assert np.std(made["head"]) > 0


def test_bad_configs_are_named():
    for settings, message in (
        ({"only": "a", "frozen": "b"}, "only and frozen are given; choose one"),
        ({"only": "a", "name": "lora"}, "peft.only needs peft.name=full; lora"),
        ({"frozen_layers": 1, "name": "prefix"}, "peft.frozen_layers needs peft.name=full"),
        ({"frozen_layers": -1}, "peft.frozen_layers=-1"),
        ({"name": "bitfit"}, "peft.name='?bitfit"),
        ({"lora": LoraConfig(rank=4)}, "peft.lora is set, but peft.name=full trains the model"),
        ({"quantize": "nf4"}, "peft.quantize=nf4: quantized weights cannot be trained"),
    ):
        with pytest.raises(ValueError, match=message):
            MethodConfig(**settings)
    for config, message in (
        (MethodConfig(only="nothing"), "pattern='nothing' matches no path"),
        (MethodConfig(frozen="("), "pattern"),
        (MethodConfig(frozen_layers=4), "the model has 3 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            method.trains(models.spec(LISTED), config)
    stacked = models.llama(vocab_size=16, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=16)
    with pytest.raises(ValueError, match="set model.scan_layers=False"):
        method.trains(models.spec(stacked), MethodConfig(frozen_layers=1))
