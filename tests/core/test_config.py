"""Model configurations say what is wrong with them, by field."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import models
from llmjax import spec as specs

SIZES = {"vocab_size": 10, "num_layers": 2, "embed_dim": 8, "num_heads": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "model.vocab_size=0"),
        ({"num_layers": 0}, "model.num_layers=0"),
        ({"embed_dim": -8}, "model.embed_dim=-8"),
        ({"num_heads": 0}, "model.num_heads=0"),
        ({"max_length": 0}, "model.max_length=0"),
        ({"num_kv_heads": -1}, "model.num_kv_heads=-1"),
        ({"norm": "layer"}, "model.norm='layer': choose one of layernorm, rmsnorm"),
        ({"head_dim": -2}, "model.head_dim=-2"),
        ({"mlp_dim": -1}, "model.mlp_dim=-1"),
        ({"init_std": -0.1}, "model.init_std=-0.1"),
        ({"norm_epsilon": 0.0}, "model.norm_epsilon=0.0"),
        ({"num_heads": 3}, "model.embed_dim=8 is not a multiple of num_heads=3"),
        ({"num_kv_heads": 3}, "model.num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"num_heads": 8}, "model.head_dim=1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        models.llama(**(SIZES | change))


@pytest.mark.parametrize("place", ["embedding", "attention", "hidden", "classifier"])
@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_is_a_share(place, rate):
    with pytest.raises(ValueError, match=f"dropout.{place}={rate}"):
        models.Dropout(**{place: rate})


def test_sizes_left_open_follow_from_the_others():
    config = models.llama(**SIZES)
    assert (config.kv_heads, config.channels, config.hidden_dim) == (4, 2, 32)
    assert config.compute_dtype == jnp.float32  # on CPU
    assert dataclasses.replace(config, dtype="bfloat16").compute_dtype == jnp.bfloat16


def test_published_sizes():
    """GPT-2 small has 124,439,808 parameters; Llama 2 7B has 6,738,415,616."""
    gpt2 = models.gpt2(vocab_size=50257, num_layers=12, embed_dim=768, num_heads=12)
    assert specs.count(models.spec(gpt2)) == 124_439_808
    llama = models.llama(
        vocab_size=32000, num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=11008
    )
    assert specs.count(models.spec(llama)) == 6_738_415_616


def test_longer_than_the_learned_positions_is_an_error(gpt2, draw):
    tokens = np.zeros((1, 17), np.int32)
    with pytest.raises(ValueError, match="17 tokens exceed the 16 learned positions"):
        models.apply(draw(models.spec(gpt2)), tokens, gpt2)
