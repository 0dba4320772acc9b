"""Bottlenecks give the logits and gradients that AdapterHub computed for the golden file."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import models, peft, spec, tree
from llmjax.peft import adapter
from tools.make_adapter_goldens import ADAPTERS, FILE, MODELS, cotangent, draw_adapter
from tools.make_goldens import digest, draw_inputs


def draw(declared, base, count):
    """The base model's weights, and the adapters' by their names."""
    old = dict(zip(tree.paths(base), jax.tree.leaves(base), strict=True))

    def one(path, param):
        if not param.added:
            return old[path]
        rest = path.removeprefix("layers/")
        return np.stack([draw_adapter(f"{i}/{rest}", param.shape[1:]) for i in range(count)])

    return tree.map_with_path(one, declared, is_leaf=spec.is_param)


# Between them, every model and every kind.
QUICK = {("gpt2", "houlsby"), ("llama", "chapter"), ("bert", "pfeiffer")}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(MODELS, ADAPTERS)
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_equals_the_golden_file(name, kind, draw_params, apply):
    config, batch = MODELS[name], draw_inputs(MODELS[name], padding="right")
    declared = adapter.spec(models.spec(config), config, ADAPTERS[kind][0])
    params = draw(declared, draw_params(config), config.num_layers)
    new, old = tree.partition(params, peft.trained(declared))

    @jax.jit
    def run(new):
        def scalar(new):
            logits = apply(config, tree.combine(new, old), batch)
            weights = cotangent(batch["segment_ids"], config.vocab_size)
            return jnp.sum(logits * weights), logits

        return jax.grad(scalar, has_aux=True)(new)

    grads, logits = jax.device_get(run(new))
    actual = {"logits": logits[batch["segment_ids"] != 0]}
    for path, value in zip(tree.paths(grads), jax.tree.leaves(grads), strict=True):
        rest = path.removeprefix("layers/")
        actual |= {f"gradient/{i}/{rest}": value[i] for i in range(config.num_layers)}
    actual, start = digest(actual), f"{name}/{kind}/"
    with np.load(FILE) as file:
        golden = {path.removeprefix(start): file[path] for path in file if path.startswith(start)}
    assert set(actual) == set(golden)
    for path, value in golden.items():
        limit = 2e-5 * max(np.abs(value).max(), 1e-2)
        np.testing.assert_allclose(actual[path], value, rtol=0, atol=limit, err_msg=path)
