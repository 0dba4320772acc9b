"""The judge of tools/convergence.py is the model that it judges: same weights, same logits."""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.recipes import RECIPES
from llmjax import models, tree
from llmjax import spec as specs

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")


def test_same_weights_give_the_same_logits() -> None:
    from tools import torch_gpt

    recipe = RECIPES["nanogpt_cpu"]()
    config = dataclasses.replace(recipe.model, num_layers=2, embed_dim=32, max_length=16)
    gpt = torch_gpt.GPT(config.vocab_size, 2, 32, config.num_heads, 16)
    spec = models.spec(config)
    assert torch_gpt.count(gpt) == specs.count(spec)
    # Larger than at the start of training, or attention would hardly matter.
    params = jax.tree.map(lambda x: 5 * x, specs.init(jax.random.key(0), spec))
    gpt.load_state_dict(
        {name: torch.tensor(np.array(value)) for name, value in to_torch(params).items()}
    )
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, 16))
    hidden, _ = models.apply(params, tokens, config)
    with torch.inference_mode():
        expected = gpt(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(models.logits(params, hidden, config), expected, atol=2e-4)


def to_torch(params) -> dict[str, jax.Array]:
    state = {
        "embedding.weight": params["embedding"],
        "positions.weight": params["positions"],
        "norm.weight": params["final_norm"]["scale"],
    }
    for index, layer in enumerate(tree.unstack(params["layers"])):
        attention = layer["attention"]
        joined = [
            einops.rearrange(attention[n], "d h c -> (h c) d") for n in ("query", "key", "value")
        ]
        block = {
            "attention_norm": layer["attention_norm"]["scale"],
            "queries_keys_values": jnp.concatenate(joined),
            "attention_out": einops.rearrange(attention["out"], "h c d -> d (h c)"),
            "mlp_norm": layer["mlp_norm"]["scale"],
            "mlp_up": einops.rearrange(layer["mlp"]["up"], "d f -> f d"),
            "mlp_out": einops.rearrange(layer["mlp"]["down"], "f d -> d f"),
        }
        state |= {f"blocks.{index}.{name}.weight": value for name, value in block.items()}
    return state
