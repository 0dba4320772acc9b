"""Rates and decays by path: whom a rule takes, how layers count, and what is refused."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models, optim, weights
from llmjax import tree as trees
from llmjax.optim.rules import layer_factors
from llmjax.spec import Param, is_param, map_params

PLAIN = {"schedule": "constant", "warmup_steps": 0, "learning_rate": 0.1, "clip_norm": 0.0}


def moved(spec, params, grads, **settings):
    """What the first update adds to each parameter, by path."""
    optimizer = optim.make(optim.OptimizerConfig(**(PLAIN | settings)), spec, 10)
    state = optimizer.init(params)
    updates = jax.jit(optimizer.update)(grads, state, params)[0]
    return dict(zip(trees.paths(updates), jax.device_get(jax.tree.leaves(updates)), strict=True))


def rates(spec, **settings):
    """The size of Adam's first step, which is the rate in every element, by path."""
    ones = map_params(lambda param: jnp.ones(param.shape), spec)
    return moved(spec, ones, ones, weight_decay=0.0, **settings)


def leaf(*shape, axes=None):
    return Param(shape, axes or (None,) * len(shape), None)


def stacked(*shape):
    return leaf(*shape, axes=("layers", "embed", *(None,) * (len(shape) - 2)))


SPEC = {
    "embedding": leaf(3, 2),
    "layers": {"up": stacked(3, 2, 2), "up_bias": stacked(3, 2)},
    "final_norm": {"scale": leaf(2)},
    "head": leaf(3, 2),
}


def test_the_first_rule_that_finds_a_path_decides():
    rules = (optim.Rule("bias$", 0.5), optim.Rule("^layers/", 2.0), optim.Rule("head", 0.0))
    found = rates(SPEC, rates=rules)
    expected = {
        "embedding": 0.1, "layers/up": 0.2, "layers/up_bias": 0.05, "final_norm/scale": 0.1,
        "head": 0.0,
    }  # fmt: skip
    for path, rate in expected.items():
        np.testing.assert_allclose(found[path], -rate, rtol=1e-5, atol=1e-8, err_msg=path)


def test_decay_follows_both_kinds_of_rules():
    """Without a gradient a parameter moves by rate · factor · decay · factor · itself."""
    ones = map_params(lambda param: jnp.ones(param.shape), SPEC)
    found = moved(
        SPEC,
        ones,
        jax.tree.map(jnp.zeros_like, ones),
        weight_decay=0.5,
        rates=(optim.Rule("^head$", 4.0),),
        decays=(optim.Rule("up$", 3.0), optim.Rule("norm/|bias$|^embedding$", 0.0)),
    )
    expected = {
        "embedding": 0.0, "layers/up": 0.15, "layers/up_bias": 0.0, "final_norm/scale": 0.0,
        "head": 0.2,
    }  # fmt: skip
    for path, size in expected.items():
        np.testing.assert_allclose(found[path], -size, rtol=1e-5, err_msg=path)


def test_layers_count_from_the_top():
    """Bao et al.'s get_num_layer_for_vit: embeddings 0, layer i has i + 1, the rest L + 1."""
    decay, layers = 0.5, 3
    found = rates(SPEC, layer_decay=decay)
    np.testing.assert_allclose(found["embedding"], -0.1 * decay ** (layers + 1), rtol=1e-5)
    for index in range(layers):
        rate = -0.1 * decay ** (layers + 1 - (index + 1))
        for name in ("up", "up_bias"):
            np.testing.assert_allclose(found[f"layers/{name}"][index], rate, rtol=1e-5)
    for path in ("final_norm/scale", "head"):
        np.testing.assert_allclose(found[path], -0.1, rtol=1e-5)


def by_path(found, spec):
    leaves = jax.tree.leaves(found)
    return dict(zip(trees.paths(spec, is_param), leaves, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_listed_layers_are_as_stacked_ones(family, request):
    config = request.getfixturevalue(family)
    sizes = {"vocab_size": 8, "num_layers": 3, "embed_dim": 8, "num_heads": 2}
    build = getattr(models, config.family)
    spec, listed = (models.spec(build(scan_layers=scan, **sizes)) for scan in (True, False))
    together, alone = (by_path(layer_factors(0.7, tree), tree) for tree in (spec, listed))
    for path, factor in alone.items():
        parts = path.split("/")
        if parts[0] != "layers":
            assert factor == together[path]
            continue
        stack = together["/".join(("layers", *parts[2:]))]
        np.testing.assert_allclose(factor, stack[int(parts[1])].item(), rtol=1e-6)
    below = {path for path, factor in alone.items() if factor == pytest.approx(0.7**4)}
    assert below == {"embedding"} | ({"positions"} if family == "gpt2" else set())


def test_each_of_two_models_has_its_own_count():
    spec = {"generator": {"layers": [{"up": leaf(2)}]}, "discriminator": SPEC}
    found = by_path(layer_factors(0.5, spec), spec)
    assert found["generator/layers/0/up"] == 0.5
    assert found["discriminator/embedding"] == 0.5**4
    np.testing.assert_allclose(np.ravel(found["discriminator/layers/up"]), [0.125, 0.25, 0.5])


def lora_spec():
    """What trains of a model whose queries have adapters: the rest of the tree is None."""
    a = leaf(3, 4, 2, axes=("layers", "embed", None))
    b = leaf(3, 2, 4, axes=("layers", None, "heads"))
    a, b = (dataclasses.replace(factor, added=True) for factor in (a, b))
    query = weights.Lora(base=None, a=a, b=b, scale=2.0)
    up = dataclasses.replace(leaf(3, 4, 4, axes=("layers", "embed", "mlp")), inputs=1)
    return {"embedding": None, "layers": {"query": query, "up": up, "down": None}, "head": None}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_trains_may_be_a_part_with_leaf_types_in_it(name):
    """LoRA's factors are Adam's under Muon, too: their step is the rate everywhere."""
    spec = lora_spec()
    random = np.random.RandomState(0)
    grads = map_params(lambda param: random.randn(*param.shape).astype(np.float32), spec)
    found = moved(
        spec,
        grads,
        grads,
        name=name,
        weight_decay=0.0,
        rates=(optim.Rule("query/b$", 3.0),),
        layer_decay=0.5,
    )
    assert set(found) == {"layers/query/a", "layers/query/b", "layers/up"}
    for part, factor in (("a", 1.0), ("b", 3.0)):
        sizes = np.abs(found[f"layers/query/{part}"])
        for index, by_layer in enumerate((0.125, 0.25, 0.5)):
            np.testing.assert_allclose(sizes[index], 0.1 * factor * by_layer, rtol=1e-3)
    values = np.linalg.svd(found["layers/up"][2], compute_uv=False)
    flat = values.max() / values.min() < 2
    assert flat == (name == "muon")


def test_rules_hold_on_a_mesh():
    """Stages split the layers, and with them their factors."""
    spec = {
        "embedding": leaf(4, 4, axes=("vocab", "outer_embed")),
        "layers": {"up": leaf(4, 2, 2, axes=("layers", "embed", "mlp"))},
    }
    settings = {"layer_decay": 0.5, "rates": (optim.Rule("up", 3.0),)}
    alone = rates(spec, **settings)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(stage=2, fsdp=2, tensor=2, data=1))):
        ones = map_params(
            lambda param: jax.device_put(jnp.ones(param.shape), mesh.named_sharding(param.axes)),
            spec,
        )
        found = moved(spec, ones, ones, weight_decay=0.0, **settings)
    for path, rate in alone.items():
        np.testing.assert_allclose(found[path], rate, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": (optim.Rule("layers/upp$", 2.0),)}, r"optimizer.rates: .*near: layers/up"),
        ({"rates": (optim.Rule("qqq", 2.0),)}, "matches none of the 5 parameters"),
        ({"decays": (optim.Rule("^heed$", 0.0),)}, "optimizer.decays: .*near: head"),
        (
            {"rates": (optim.Rule("layers", 2.0), optim.Rule("up$", 3.0))},
            "pattern=up\\$ matches is matched by an earlier rule",
        ),
    ],
)
def test_a_rule_that_decides_nothing_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.make(optim.OptimizerConfig(**(PLAIN | settings)), SPEC, 10)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"pattern=\(: not a regular expression"):
        optim.Rule("(", 1.0)
    with pytest.raises(ValueError, match="factor=-1.0 of pattern=head"):
        optim.Rule("head", -1.0)
    with pytest.raises(ValueError, match="optimizer.layer_decay=0.0"):
        optim.OptimizerConfig(layer_decay=0.0)
    with pytest.raises(ValueError, match="layer_decay=0.5: no layer is trained"):
        optim.make(optim.OptimizerConfig(**PLAIN, layer_decay=0.5), {"head": SPEC["head"]}, 10)


def test_a_default_need_not_find_anything():
    optim.make(optim.OptimizerConfig(**PLAIN), {"up": leaf(2, 2)}, 10)


@pytest.mark.parametrize(("method", "low", "high"), [("full", 1e-5, 5e-5), ("lora", 1e-4, 1e-3)])
def test_suggested_rates_are_in_the_chapters_ranges(method, low, high):
    config = optim.suggested(method, steps=200)
    assert low <= config.learning_rate <= high
    assert (config.warmup_steps, config.schedule) == (12, "linear")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optim.warn_if_far(high, method)
    with pytest.warns(UserWarning, match=f"far from the usual range for {method}"):
        optim.warn_if_far(high * 100, method)
    with pytest.raises(ValueError, match="method='lore': choose one of full, lora"):
        optim.suggested("lore")
