"""Directories: transformers reads what we save, and we read what it saves, to the same logits."""

import numpy as np
import pytest

from llmjax import hf, models
from tools.make_goldens import draw_tokens, torch_model

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {
    "gpt2": models.gpt2(
        vocab_size=48, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=40, max_length=16
    ),
    "gpt2, untied": models.gpt2(
        vocab_size=48, num_layers=1, embed_dim=8, num_heads=1, max_length=16, tied=False
    ),
    "llama": models.llama(
        vocab_size=48,
        num_layers=2,
        embed_dim=16,
        num_heads=4,
        num_kv_heads=2,
        mlp_dim=24,
        rope_theta=500.0,
    ),
    "llama, tied, wide heads": models.llama(
        vocab_size=48, num_layers=1, embed_dim=16, num_heads=2, head_dim=12, tied=True
    ),
}


def logits_of(params, config, tokens):
    hidden, _ = models.apply(params, tokens, config)
    return np.asarray(models.logits(params, hidden, config))


@pytest.mark.parametrize("name", CONFIGS)
def test_both_ways(name, tmp_path):
    config, tokens = CONFIGS[name], draw_tokens(CONFIGS[name])
    theirs = torch_model(config).float()
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(tokens).long()).logits.numpy()

    found, params = hf.load(tmp_path / "theirs")
    assert found == config
    np.testing.assert_allclose(logits_of(params, found, tokens), expected, atol=1e-4)

    hf.save(tmp_path / "ours", found, params)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        np.testing.assert_array_equal(
            again(torch.from_numpy(tokens).long()).logits.numpy(), expected
        )
