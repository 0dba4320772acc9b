"""A config.json that leaves fields out means what transformers fills in."""

import dataclasses

import pytest

from llmjax.hf.config import config_from_hf
from llmjax.hf.families import FAMILIES, REQUIRED

pytestmark = pytest.mark.parity

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 60_000,
    "num_layers": 30,
    "embed_dim": 256,
    "num_heads": 32,
    "mlp_dim": 64,
}
NEEDED = {
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p"]},
    "qwen2": {"use_sliding_window": True},
    "qwen3": {"use_sliding_window": True},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_fields_that_are_left_out(name):
    needed = {
        theirs: SIZES[ours]
        for theirs, (ours, default) in FAMILIES[name].fields.items()
        if default is REQUIRED
    }
    given = {"model_type": name} | needed | NEEDED.get(name, {})
    whole = transformers.CONFIG_MAPPING[name](**given).to_dict() | {"architectures": None}
    found, expected = config_from_hf(given), config_from_hf(whole)
    assert dataclasses.asdict(found) == dataclasses.asdict(expected)
