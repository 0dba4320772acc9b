"""A config.json with anything in it is read or refused with a ValueError, in every family."""

import json
import random

import pytest

from llmjax.hf.config import config_from_hf, config_to_hf
from tools.golden_models import CONFIGS, VARIANTS

JUNK = (
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    2**40,
    10**400,
    0.5,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "gelu",
    "../../etc/passwd",
    [],
    [None],
    ["full_attention", "sliding_attention"],
    [[1]],
    {},
    {"rope_type": "llama3"},
    {"full_attention": 3, "sliding_attention": None},
    {"full_attention": {"rope_type": "linear", "factor": 0.0, "rope_theta": 1.0}},
    {"": {"": []}},
)


def read_or_refuse(fields) -> bool:
    """Whether it was read; anything but a ValueError is a defect."""
    try:
        config_from_hf(fields)
    except ValueError as error:
        assert len(str(error)) < 2000
        return False
    return True


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_with_everything_in_it(name):
    fields = config_to_hf(CONFIGS[name])
    assert read_or_refuse(fields)
    for field in [*fields, "rope_scaling", "id2label", "num_labels", "layer_types"]:
        for junk in JUNK:
            read_or_refuse(fields | {field: junk})
        read_or_refuse({other: value for other, value in fields.items() if other != field})


def test_thousands_of_mixtures():
    """Fields of one family in another's file, several broken at once."""
    draw = random.Random(0)
    written = [config_to_hf(config) for config in (CONFIGS | VARIANTS).values()]
    refused = 0
    for _ in range(3000):
        fields = dict(draw.choice(written))
        for name, value in draw.sample(sorted(draw.choice(written).items()), 3):
            fields[name] = value
        for name in draw.sample(sorted(fields), 2):
            fields[name] = draw.choice(JUNK)
        refused += not read_or_refuse(json.loads(json.dumps(fields)))
    assert 1000 < refused < 3000
