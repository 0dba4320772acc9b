"""QLoRA: a base in 8 or 4 bits, beneath corrections that train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models, peft, tree
from llmjax import spec as specs
from llmjax.objectives import clm
from llmjax.peft import LoraConfig, freeze, lora
from llmjax.weights import Int8, Nf4

CONFIG = models.llama(vocab_size=64, num_layers=2, embed_dim=64, num_heads=2, mlp_dim=128)
TOKENS = np.random.RandomState(0).randint(0, 64, (4, 8)).astype(np.int32)


def base():
    return specs.init(jax.random.key(0), models.spec(CONFIG))


def loss(params, tokens):
    batch = {"tokens": tokens, "targets": jnp.roll(tokens, -1, 1)}
    return clm(CONFIG)(params, batch, None)[0].sum


@pytest.mark.parametrize(("kind", "most"), [("nf4", 0.14), ("int8", 0.27)])
def test_the_base_needs_few_bytes(kind, most):
    """Of float32's, for all projections; norms and tables stay as they are."""
    params, spec = peft.quantize(base(), models.spec(CONFIG), kind)
    abstract = specs.abstract(spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )
    small, rest = tree.partition(params, tree.matches(r"/(attention|mlp)/"))
    whole, others = tree.partition(base(), tree.matches(r"/(attention|mlp)/"))
    nbytes = [sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for part in (small, whole)]
    assert nbytes[0] <= most * nbytes[1]
    assert jax.tree.structure(rest["final_norm"]) == jax.tree.structure(others["final_norm"])


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_corrections_train_over_it(kind):
    """The loss and the gradients are those over the base that it stands for, on a mesh too."""
    params, quantized = peft.quantize(base(), models.spec(CONFIG), kind)
    assert isinstance(params["layers"]["mlp"]["up"], Nf4 if kind == "nf4" else Int8)
    spec = lora.spec(quantized, LoraConfig(2))
    whole = lora.spec(models.spec(CONFIG), LoraConfig(2))

    def run(base, spec):
        params = peft.add(base, spec, jax.random.key(1))
        trained, frozen = tree.partition(params, peft.trained(spec))

        def move(path, x):
            step = 0.1 * np.random.RandomState(tree.path_hash(path)).randn(*x.shape)
            return x + jnp.asarray(step, x.dtype)

        trained = tree.map_with_path(move, trained)
        rows = mesh.shard_batch({"tokens": TOKENS})["tokens"]

        @jax.jit
        def grad(trained, frozen):
            return jax.value_and_grad(lambda t: loss(tree.combine(t, frozen), rows))(trained)

        return jax.device_get(grad(trained, frozen))

    expected = run(peft.merge(params), whole)
    found = [run(params, spec)]
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])):
        found.append(run(specs.move(params, quantized), spec))
    for value, grads in found:
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        for actual, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected[1]), strict=True):
            np.testing.assert_allclose(actual, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


def test_what_cannot_be_quantised_is_named():
    declared = models.spec(CONFIG)
    with pytest.raises(ValueError, match="kind='int4': choose one of int8, nf4"):
        peft.quantize(base(), declared, "int4")
    with pytest.raises(ValueError, match="pattern='norm' matches .*not matrices"):
        peft.quantize(base(), declared, "nf4", "norm")
    narrow = models.spec(models.llama(vocab_size=64, num_layers=1, embed_dim=6, num_heads=1))
    with pytest.raises(ValueError, match=r"layers/attention/key: a weight .*blocks of 64"):
        peft.quantize(None, narrow, "nf4")


def test_freezing_by_path():
    unrolled = models.spec(
        models.llama(vocab_size=64, num_layers=3, embed_dim=16, num_heads=2, scan_layers=False)
    )
    paths = tree.paths(unrolled, is_leaf=specs.is_param)

    def trains(predicate):
        return {path for path in paths if predicate(path, None)}

    assert trains(freeze.only(unrolled, "^head")) == {"head"}
    assert trains(freeze.all_but(unrolled, "^head")) == set(paths) - {"head"}
    assert trains(freeze.first_layers(unrolled, 2)) == {
        path for path in paths if path.startswith(("layers/2/", "final_norm", "head"))
    }
    with pytest.raises(ValueError, match="layers are stacked .*scan_layers=False"):
        freeze.first_layers(models.spec(CONFIG), 1)
    with pytest.raises(ValueError, match="first_layers=4: the model has 3 layers"):
        freeze.first_layers(unrolled, 4)
    with pytest.raises(ValueError, match="pattern='tail' matches no path"):
        freeze.only(unrolled, "tail")
