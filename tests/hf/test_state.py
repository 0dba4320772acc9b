"""Names that checkpoints carry besides the model's, and parameters that are read in parts."""

import dataclasses
import weakref
from collections.abc import Iterator, Mapping

import jax
import ml_dtypes
import numpy as np
import pytest

from llmjax import hf, mesh, models
from llmjax.hf import state
from llmjax.models import experts
from llmjax.spec import Param, is_param


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


E, WIDTH, INNER = 4, 8, 6
EXPERT = "model.layers.{}.mlp.experts.{}"


def experts_spec(stacked: bool):
    """Of two layers of experts: stacked, or a list whose names have one number left."""
    into = Param((E, WIDTH, INNER), experts.INTO, None, f"{EXPERT}.up.weight", "f d -> d f")
    router = Param((WIDTH, E), ("embed", None), None, "model.layers.{}.router", "e d -> d e")
    # A fused tensor of each expert: this is its second half.
    half = Param((E, INNER, WIDTH), experts.BACK, None, f"{EXPERT}.fused", "d f -> f d", (1, 2, 0))
    other = Param((E, INNER, WIDTH), experts.BACK, None, f"{EXPERT}.fused", "d f -> f d", (0, 2, 0))
    layer = {"up": into, "router": router, "half": half, "other": other}
    if stacked:
        return {"layers": {name: param.stack(2) for name, param in layer.items()}}

    def numbered(param, number):
        return dataclasses.replace(param, hf=param.hf.replace("{}", str(number), 1))

    return {
        "layers": [{name: numbered(p, number) for name, p in layer.items()} for number in range(2)]
    }


@pytest.mark.parametrize("stacked", [True, False])
def test_every_expert_has_tensors_of_its_own(stacked, draw, assert_bitwise):
    spec = experts_spec(stacked)
    params = draw(spec)
    tensors = hf.to_state(spec, params)
    assert len(tensors) == 2 * (E + E + 1)
    assert_bitwise(hf.from_state(spec, tensors), params)
    layers = params["layers"]
    for layer in range(2):
        one = jax.tree.map(lambda a, n=layer: a[n], layers) if stacked else layers[layer]
        np.testing.assert_array_equal(tensors[f"model.layers.{layer}.router"], one["router"].T)
        for expert in range(E):
            name = EXPERT.format(layer, expert)
            np.testing.assert_array_equal(tensors[f"{name}.up.weight"], one["up"][expert].T)
            fused = np.concatenate([one["other"][expert].T, one["half"][expert].T])
            np.testing.assert_array_equal(tensors[f"{name}.fused"], fused)
    del tensors[EXPERT.format(1, 2) + ".fused"]
    with pytest.raises(ValueError, match=r"missing: model\.layers\.1\.mlp\.experts\.2\.fused"):
        hf.from_state(spec, tensors)


@pytest.mark.parametrize("stacked", [True, False])
def test_experts_split_over_devices_come_and_go(stacked, draw, assert_bitwise):
    """Each device takes its part of its experts; a tensor is one of them, from all devices."""
    spec = experts_spec(stacked)
    params = draw(spec)
    tensors = hf.to_state(spec, params)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(1, 2, 2, 2))):
        placed = hf.from_state(spec, tensors, place=state.sharded())
        layer = placed["layers"] if stacked else placed["layers"][1]
        part = layer["up"].addressable_shards[0].data.shape
        assert part[-3:] == (E // 2, WIDTH // 2, INNER // 2)
        assert_bitwise(hf.to_state(spec, placed), tensors)
    assert_bitwise(hf.to_state(spec, placed), tensors)
    assert_bitwise(hf.to_state(spec, jax.tree.map(jax.numpy.asarray, params)), tensors)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_device_reads_its_experts_only(stacked, draw):
    """What belongs to others may be anything: it is never copied."""
    spec = experts_spec(stacked)
    params = draw(spec)
    tensors = hf.to_state(spec, params)
    clean = hf.from_state(spec, tensors)
    for name, tensor in tensors.items():
        if ".experts.0." in name or ".experts.1." in name:
            tensor[...] = np.nan

    def last_half(stored, param):
        whole = (slice(None),) * len(stored.shape)
        index = tuple(
            slice(E // 2, E) if axis == "experts" else part
            for axis, part in zip(param.axes, whole, strict=True)
        )
        return stored[index], index

    read = hf.from_state(spec, tensors, place=last_half)

    def check(param, found, whole):
        part, index = found
        np.testing.assert_array_equal(part, whole[index])

    jax.tree.map(check, spec, read, clean, is_leaf=is_param)
