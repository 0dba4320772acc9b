"""Names that checkpoints carry besides the model's, and parameters that are read in parts."""

import weakref
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import pytest

from llmjax import hf, models
from llmjax.hf import state


def test_harmless_tensors_are_ignored(gpt2, llama, draw, assert_bitwise):
    for config, extras in (
        (gpt2, ("lm_head.weight", "transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")),
        (llama, ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.position_ids")),
    ):
        spec = models.spec(config)
        params = draw(spec)
        tensors = hf.to_state(spec, params) | {name: np.zeros(3) for name in extras}
        assert_bitwise(hf.from_state(spec, tensors), params)
        with pytest.raises(ValueError, match=f"extra: {extras[0]}"):
            hf.from_state(spec, tensors, ignored=())


def test_a_head_of_its_own_is_not_ignored(llama, draw, assert_bitwise):
    spec = models.spec(llama)
    params = draw(spec)
    assert "lm_head.weight" in hf.to_state(spec, params)
    assert_bitwise(hf.from_state(spec, hf.to_state(spec, params))["head"], params["head"])


def test_names_without_the_prefix_of_the_whole(gpt2, draw, assert_bitwise):
    """As the first GPT-2 checkpoints have them."""
    spec = models.spec(gpt2)
    params = draw(spec)
    tensors = hf.to_state(spec, params)
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 4, 4))
    assert_bitwise(hf.from_state(spec, bare), params)
    # One of both kinds is no such checkpoint.
    bare["transformer.wte.weight"] = bare["wte.weight"]
    with pytest.raises(ValueError, match="extra: wte.weight"):
        hf.from_state(spec, bare)


def test_gamma_and_beta():
    wanted = {"bert.LayerNorm.weight": (), "bert.LayerNorm.bias": ()}
    tensors = dict.fromkeys(("bert.LayerNorm.gamma", "bert.LayerNorm.beta"), np.zeros(1))
    found, problems = state._find(wanted, tensors)
    assert found == dict(zip(wanted, tensors, strict=True))
    assert not problems
    _, problems = state._find(wanted, tensors | {"bert.LayerNorm.weight": np.zeros(1)})
    assert "twice: bert.LayerNorm.weight" in problems[0]


def test_a_layer_in_another_precision(llama, draw):
    """What holds both, whatever the order."""
    spec = models.spec(llama)
    tensors = hf.to_state(spec, draw(spec))
    name = "model.layers.{}.mlp.up_proj.weight"
    tensors[name.format(0)] = tensors[name.format(0)].astype(np.float16)
    tensors[name.format(1)] = tensors[name.format(1)].astype(ml_dtypes.bfloat16)
    up = hf.from_state(spec, tensors)["layers"]["mlp"]["up"]
    assert up.dtype == np.float32
    for layer in range(2):
        expected = tensors[name.format(layer)].T.astype(np.float32)
        np.testing.assert_array_equal(up[layer], expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parts_are_parts_of_the_whole(family, request, draw):
    spec = models.spec(request.getfixturevalue(family))
    whole = draw(spec)
    seen = []

    def place(stored, param):
        index = tuple(slice(size // 2, size) for size in stored.shape)
        seen.append((stored.read(), stored[index], param))
        return index

    hf.from_state(spec, hf.to_state(spec, whole), place=place)
    for read, part, param in seen:
        assert read.shape == param.shape
        np.testing.assert_array_equal(part, read[tuple(slice(n // 2, n) for n in param.shape)])


class Watched(Mapping[str, np.ndarray]):
    """A mapping whose tensors exist only while somebody holds them."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors, self.alive, self.most = tensors, 0, 0

    def __getitem__(self, name: str) -> np.ndarray:
        value = self.tensors[name].copy()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(value, self._gone)
        return value

    def _gone(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_one_parameters_tensors_at_a_time(llama, draw):
    """A stacked parameter of two layers is two tensors, and one more may be on its way out."""
    spec = models.spec(llama)
    watched = Watched(hf.to_state(spec, draw(spec)))
    hf.from_state(spec, watched)
    assert watched.most <= 2 * llama.num_layers
    assert watched.most < len(watched) / 4
