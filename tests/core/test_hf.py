"""Checkpoint names and layouts: a bitwise round trip, and errors that list what is wrong."""

import jax
import numpy as np
import pytest

from llmjax import hf, models
from llmjax import spec as specs


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_round_trip_is_bitwise(family, request, draw):
    spec = models.spec(request.getfixturevalue(family))
    params = draw(spec)
    state = hf.to_state(spec, params)
    assert all(value.flags.c_contiguous for value in state.values())
    assert sum(value.size for value in state.values()) == specs.count(spec)
    jax.tree.map(np.testing.assert_array_equal, hf.from_state(spec, state), params)


def test_fused_tensors_are_query_key_and_value_side_by_side(gpt2, draw):
    spec = models.spec(gpt2)
    params = draw(spec)
    state = hf.to_state(spec, params)
    fused = state["transformer.h.1.attn.c_attn.weight"]
    assert fused.shape == (16, 48)
    for index, name in enumerate(("query", "key", "value")):
        ours = params["layers"]["attention"][name][1].reshape(16, 16)
        np.testing.assert_array_equal(fused[:, 16 * index : 16 * (index + 1)], ours)


def test_transposed_layouts(llama, draw):
    """torch's Linear keeps [outputs, inputs]."""
    spec = models.spec(llama)
    params = draw(spec)
    state = hf.to_state(spec, params)
    np.testing.assert_array_equal(
        state["model.layers.1.mlp.down_proj.weight"], params["layers"]["mlp"]["down"][1].T
    )
    assert state["model.layers.0.self_attn.k_proj.weight"].shape == (8, 16)


def test_precision_is_the_checkpoints(llama, draw):
    spec = models.spec(llama)
    state = hf.to_state(spec, jax.tree.map(np.float16, draw(spec)))
    assert {value.dtype for value in state.values()} == {np.dtype(np.float16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(hf.from_state(spec, state))} == {
        np.dtype(np.float16)
    }


def test_import_lists_everything_that_is_wrong(llama, draw):
    spec = models.spec(llama)
    state = hf.to_state(spec, draw(spec))
    del state["model.norm.weight"]
    state["model.layers.2.mlp.up_proj.weight"] = np.zeros((32, 16))
    state["lm_head.weight"] = np.zeros((63, 16))
    with pytest.raises(ValueError) as error:
        hf.from_state(spec, state)
    for line in (
        "missing: model.norm.weight (16,)",
        "extra: model.layers.2.mlp.up_proj.weight",
        "shape: lm_head.weight is (63, 16), but the model needs (64, 16)",
    ):
        assert line in str(error.value)


def test_export_lists_everything_that_is_wrong(llama, draw):
    spec = models.spec(llama)
    params = draw(spec)
    del params["final_norm"]
    params["adapter"] = np.zeros(3)
    params["head"] = np.zeros((63, 16))
    with pytest.raises(ValueError) as error:
        hf.to_state(spec, params)
    for line in (
        "missing: final_norm/scale",
        "extra: adapter",
        "shape: head is (63, 16), but the spec says (64, 16)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize("way", ["in", "out"])
def test_parameters_without_a_name_there_are_listed(way, draw):
    """A Llama with learned positions trains, but no such checkpoint exists."""
    config = models.llama(vocab_size=8, num_layers=1, embed_dim=8, num_heads=2, position="learned")
    spec = models.spec(config)
    with pytest.raises(ValueError, match=r"no place(?s:.*)positions"):
        hf.from_state(spec, {}) if way == "in" else hf.to_state(spec, draw(spec))
