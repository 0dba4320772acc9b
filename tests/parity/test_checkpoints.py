"""Directories: transformers reads what we save, and we read what it saves, to the same logits."""

import numpy as np
import pytest

from llmjax import hf
from tools.golden_models import CONFIGS, HEADS, VARIANTS
from tools.make_goldens import draw_inputs, torch_logits, torch_model

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ALL = CONFIGS | VARIANTS | HEADS


@pytest.mark.parametrize("name", ALL)
def test_both_ways(name, tmp_path, apply, assert_bitwise):
    config, batch = ALL[name], draw_inputs(ALL[name])
    theirs = torch_model(config).float()
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.inference_mode():
        expected = torch_logits(theirs, config, batch).numpy()

    found, params = hf.load(tmp_path / "theirs")
    assert hf.config_to_hf(found) == hf.config_to_hf(config)
    np.testing.assert_allclose(apply(found, params, batch), expected, atol=1e-4)

    # transformers pools by the padding's id.
    padding = {"pad_token_id": 0} if config.head.kind in ("classification", "reward") else {}
    hf.save(tmp_path / "ours", found, params, extra=padding)
    assert_bitwise(hf.load(tmp_path / "ours")[1], params)
    again, report = type(theirs).from_pretrained(
        tmp_path / "ours",
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        logits = torch_logits(again, config, batch).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
