"""Prefix tuning gives PEFT's outputs, gradients and files, on random tiny models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import models, peft, spec, tree
from llmjax.peft import PrefixConfig, prefix, prefix_files
from tools.golden_models import CONFIGS, VARIANTS
from tools.make_goldens import draw_inputs, draw_weight, torch_model

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("peft")

# Learned positions; rotary ones with grouped heads; caps, norms of queries and keys, other widths.
FAMILIES = {
    "gpt2": CONFIGS["gpt2"],
    "llama": VARIANTS["llama 2"],
    "qwen3": CONFIGS["qwen3"],
    "gemma2": models.gemma2(
        vocab_size=48, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, mlp_dim=24,
        head_dim=6, max_length=32, attention=models.Attention(cap=4.0, scale_dim=9),
    ),
}  # fmt: skip
LENGTH, HIDDEN = 3, 10


def of_peft(config, hidden):
    """PEFT's model over ours, with its prefix's weights drawn by name."""
    model = torch_model(config).double()
    wanted = theirs.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=LENGTH,
        prefix_projection=bool(hidden),
        encoder_hidden_size=hidden or None,
    )
    model = theirs.get_peft_model(model, wanted).double().eval()
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            weight.copy_(torch.from_numpy(draw_weight(f"prefix.{name}", tuple(weight.shape))))
    return model, encoder


def logits_of(model, batch):
    """Those of PEFT's model."""
    names = {"input_ids": "tokens", "attention_mask": "segment_ids", "position_ids": "positions"}
    return model(
        **{there: torch.from_numpy(batch[here]).long() for there, here in names.items()}
    ).logits


def ours(config, hidden, encoder, base):
    """Our declarations and parameters with the weights of PEFT's encoder."""
    declared = prefix.spec(models.spec(config), config, PrefixConfig(LENGTH, hidden))
    weights = {name: value.detach().numpy() for name, value in encoder.named_parameters()}
    return declared, peft.attach(base, to_ours(config, hidden, weights))


def to_ours(config, hidden, weights):
    """What PEFT's encoder has by name, weights or gradients, as our tree."""
    kv = (config.num_layers, 2, config.kv_heads, config.channels)
    if hidden:
        out = weights["transform.2.weight"].T
        return {
            "prefix": {
                "embedding": weights["embedding.weight"],
                "hidden": weights["transform.0.weight"].T,
                "hidden_bias": weights["transform.0.bias"],
                "out": out.reshape(hidden, *kv),
                "out_bias": weights["transform.2.bias"].reshape(kv),
            }
        }
    values = weights["embedding.weight"].reshape(LENGTH, *kv).transpose(2, 1, 3, 0, 4)
    new = dict(zip(("prefix_key", "prefix_value"), values, strict=True))
    return {"layers": {"attention": new}}


@pytest.mark.parametrize("hidden", [0, HIDDEN])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal(family, padding, hidden, draw_params, apply):
    config = FAMILIES[family]
    batch = draw_inputs(config, padding)
    model, encoder = of_peft(config, hidden)
    real = batch["segment_ids"] != 0
    weights = draw_weight("cotangent", (*real.shape, config.vocab_size)) * real[..., None]
    expected = logits_of(model, batch)
    (expected * torch.from_numpy(weights)).sum().backward()
    gradients = {name: weight.grad.numpy() for name, weight in encoder.named_parameters()}

    declared, params = ours(config, hidden, encoder, draw_params(config))
    new, old = tree.partition(params, peft.trained(declared))

    @jax.jit
    def run(new):
        def scalar(new):
            logits = apply(config, tree.combine(new, old), batch)
            return jnp.sum(logits * weights), logits

        return jax.grad(scalar, has_aux=True)(new)

    grads, logits = run(jax.tree.map(np.float32, new))
    limit = 1e-5 * np.abs(expected.detach().numpy()).max()
    np.testing.assert_allclose(logits[real], expected.detach().numpy()[real], rtol=0, atol=limit)
    wanted = to_ours(config, hidden, gradients)
    found = prefix_only(grads)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for path, a, b in zip(
        tree.paths(wanted), jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
    ):
        limit = 1e-5 * max(np.abs(b).max(), 1e-2)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=path)


def prefix_only(params):
    """A tree of only what is not None."""
    if not isinstance(params, dict):
        return params
    found = {name: prefix_only(child) for name, child in params.items()}
    return {name: child for name, child in found.items() if jax.tree.leaves(child)}


@pytest.mark.parametrize("hidden", [0, HIDDEN])
@pytest.mark.parametrize("scan", [True, False])
def test_files_go_both_ways(scan, hidden, tmp_path, draw_params, apply):
    config = models.llama(
        vocab_size=48, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, mlp_dim=24,
        max_length=32, scan_layers=scan,
    )  # fmt: skip
    batch, base = draw_inputs(config, "right"), draw_params(config)
    real = batch["segment_ids"] != 0
    model, _ = of_peft(config, hidden)
    model.save_pretrained(tmp_path / "theirs")
    declared, added = prefix_files.load(tmp_path / "theirs", models.spec(config), config)
    params = peft.attach(base, added)
    assert jax.tree.map(jnp.shape, params) == spec.map_params(lambda param: param.shape, declared)
    expected = logits_of(model, batch).detach().numpy()[real]
    np.testing.assert_allclose(apply(config, params, batch)[real], expected, rtol=0, atol=1e-4)

    prefix_files.save(tmp_path / "ours", params, config)
    read = theirs.PeftModel.from_pretrained(torch_model(config), tmp_path / "ours").double()
    found = logits_of(read.eval(), batch).detach().numpy()[real]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    fields = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert {**fields, **written} == fields | {
        "base_model_name_or_path": None,
        "encoder_hidden_size": config.kv_heads * config.channels,
        "prefix_projection": False,
    }
