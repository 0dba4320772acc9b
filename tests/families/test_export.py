"""Law 6 for every family and head: to the tensors of a checkpoint and back, bit by bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from llmjax import hf, models
from llmjax import spec as specs
from tools.golden_models import CONFIGS, HEADS, VARIANTS

MODELS = CONFIGS | VARIANTS | HEADS


@pytest.mark.parametrize("name", MODELS)
def test_export_and_import_are_the_identity(name, draw, assert_bitwise):
    config = MODELS[name]
    spec = models.spec(config)
    params = draw(spec)
    tensors = hf.to_state(spec, params)
    assert_bitwise(hf.from_state(spec, tensors), params)
    # Every number is there, once.
    assert sum(tensor.size for tensor in tensors.values()) == specs.count(spec)


@pytest.mark.parametrize("name", MODELS)
def test_stacked_and_listed_layers_have_the_same_tensors(name, draw, assert_bitwise):
    config = MODELS[name]
    if not config.first_norm or config.disentangled.convolution:
        pytest.skip("its layers cannot be stacked")
    stacked, listed = (
        models.spec(dataclasses.replace(config, scan_layers=scan)) for scan in (True, False)
    )
    params = draw(stacked)
    layers = [
        jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        for layer in range(config.num_layers)
    ]
    unstacked = params | {"layers": layers}
    tensors = hf.to_state(stacked, params)
    assert_bitwise(hf.to_state(listed, unstacked), tensors)
    assert_bitwise(hf.from_state(listed, tensors), unstacked)


def resolved(config):
    """All that a checkpoint's config.json speaks of, with what follows from others written out."""
    attention, experts = config.attention, config.experts
    kinds = [attention.pattern[i % len(attention.pattern)] for i in range(config.num_layers)]
    head = config.head
    written = {
        "num_kv_heads": config.kv_heads,
        "head_dim": config.channels,
        "mlp_dim": config.hidden_dim,
        "embedding": dataclasses.replace(config.embedding, dim=config.table_dim),
        "rope": [config.rope.theta, config.rope.local_theta, config.rope.scaling],
        "kinds": kinds,
        "window": attention.window if "local" in kinds else 0,
        "attention": dataclasses.replace(
            attention, pattern=("global",), window=0, scale_dim=config.scale_dim
        ),
        "experts": dataclasses.replace(experts, dim=config.expert_dim) if experts.count else None,
        "head": head if head.kind in ("classification", "tokens") else head.kind,
    }
    if config.rope.scaling != "none":
        written["rope"].append(config.rope.factor)
    if config.rope.scaling == "llama3":
        written["rope"].append(config.rope)
    ways = ("remat", "scan_layers", "dtype")
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ways
    } | written


@pytest.mark.parametrize("name", MODELS)
def test_configurations_come_and_go(name):
    config = MODELS[name]
    fields = json.loads(json.dumps(hf.config_to_hf(config)))
    again = hf.config_from_hf(fields)
    assert resolved(again) == resolved(config)
    assert hf.config_to_hf(again) == fields
    shapes = [
        [param.shape for param in jax.tree.leaves(models.spec(other), is_leaf=specs.is_param)]
        for other in (config, dataclasses.replace(again, scan_layers=config.scan_layers))
    ]
    assert shapes[0] == shapes[1]


def test_a_head_without_a_place_in_checkpoints_is_named(draw):
    """Of replaced tokens, for DeBERTa in transformers."""
    config = models.with_head(CONFIGS["deberta"], "rtd")
    spec = models.spec(config)
    with pytest.raises(ValueError, match=r"no place in the family's checkpoints:\n  head/dense"):
        hf.to_state(spec, draw(spec))


def test_tied_heads_are_written_once(draw):
    for name in ("gemma2", "bert"):
        spec = models.spec(CONFIGS[name])
        table = np.asarray(draw(spec)["embedding"])
        tensors = hf.to_state(spec, draw(spec))
        assert [t.shape for t in tensors.values()].count(table.shape) == 1
