"""PEFT's format: what PEFT wrote is read, what is written is read again, the rest is refused."""

import json

import jax
import numpy as np
import pytest

from llmjax import models, peft
from llmjax import spec as specs
from llmjax.hf.files import open_file
from llmjax.peft import Ia3Config, LoraConfig, LoraRule, files, ia3, lora
from llmjax.weights import Lora
from tools.golden_models import CONFIGS
from tools.make_goldens import draw_inputs
from tools.make_peft_goldens import ADAPTER, CONFIG

FAMILIES = sorted(set(CONFIGS) - {"qwen3_moe"})


def test_an_adapter_that_peft_wrote(draw_golden):
    """tests/parity/test_peft.py compares more, where peft is installed."""
    spec, adapter = files.load(ADAPTER, models.spec(CONFIG))
    assert spec["layers"]["mlp"]["down"].scale == 3.0
    assert spec["embedding"].scale == pytest.approx(3 / np.sqrt(2))
    params = peft.attach(draw_golden(CONFIG), adapter)
    batch = draw_inputs(CONFIG, "right")

    @jax.jit
    def logits(params):
        rows = {"segment_ids": batch["segment_ids"], "positions": batch["positions"]}
        hidden, _ = models.apply(params, batch["tokens"], CONFIG, **rows)
        return models.logits(params, hidden, CONFIG)

    there = batch["segment_ids"] != 0
    expected = np.load(ADAPTER / "logits.npy")
    np.testing.assert_allclose(logits(params)[there], expected[there], rtol=1e-5, atol=1e-4)


def drawn(spec):
    """Numpy values of what was added; None in place of the rest."""

    def one(param):
        random = np.random.RandomState(sum(param.shape))
        return random.randn(*param.shape).astype(np.float32) if param.added else None

    return specs.map_params(one, spec)


@pytest.mark.parametrize("family", FAMILIES)
def test_written_and_read_again(family, tmp_path, assert_bitwise):
    """Of every family. Parts of one tensor there come back as one correction of the same sum."""
    declared = models.spec(CONFIGS[family])
    spec = lora.spec(
        declared, LoraConfig(2, rules=(LoraRule("/out$", 3), LoraRule("/up$", alpha=5.0)))
    )
    added = drawn(spec)
    files.save(tmp_path, spec, added, base_model="somewhere", task="CAUSAL_LM")
    again, read = files.load(tmp_path, declared)
    one_tensor = {"gpt2": ("query", "key", "value"), "modernbert": ("query", "gate", "up")}
    fields = json.loads((tmp_path / files.CONFIG_FILE).read_text())
    assert fields["fan_in_fan_out"] == (family == "gpt2")
    assert fields["base_model_name_or_path"] == "somewhere"
    if family not in one_tensor:
        assert_bitwise(read, added)
        return
    whole = jax.tree.map(correction, spec, added, is_leaf=peft.targets.is_node)
    found = jax.tree.map(correction, again, read, is_leaf=peft.targets.is_node)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, whole)


def correction(declared, node):
    """scale · a b, rows by columns, of each layer."""
    if not isinstance(declared, Lora):
        return None
    stacked, rank = declared.base.stacked, declared.a.shape[-1]
    lead = declared.a.shape[:stacked]
    a, b = np.asarray(node.a).reshape(*lead, -1, rank), np.asarray(node.b).reshape(*lead, rank, -1)
    return node.scale * (a @ b)


def test_factors_are_written_and_read_again(tmp_path, assert_bitwise):
    declared = models.spec(CONFIGS["bert"])
    spec = ia3.spec(declared, Ia3Config())
    files.save(tmp_path, spec, drawn(spec))
    tensors = open_file(tmp_path / files.TENSORS_FILE)
    prefix = "base_model.model.bert.encoder.layer.1."
    assert tensors[f"{prefix}attention.self.key.ia3_l"].shape == (16, 1)
    assert tensors[f"{prefix}output.dense.ia3_l"].shape == (1, 24)
    _, read = files.load(tmp_path, declared)
    assert_bitwise(read, drawn(spec))


def test_names_and_shapes_are_pefts(tmp_path):
    spec = lora.spec(models.spec(CONFIGS["llama"]), LoraConfig(2, targets="query|^head|embedding"))
    files.save(tmp_path, spec, drawn(spec))
    shapes = {name: x.shape for name, x in open_file(tmp_path / files.TENSORS_FILE).items()}
    model = "base_model.model."
    assert shapes[f"{model}model.layers.1.self_attn.q_proj.lora_A.weight"] == (2, 16)
    assert shapes[f"{model}model.layers.1.self_attn.q_proj.lora_B.weight"] == (16, 2)
    assert shapes[f"{model}model.embed_tokens.lora_embedding_A"] == (2, 48)
    assert shapes[f"{model}model.embed_tokens.lora_embedding_B"] == (16, 2)
    assert shapes[f"{model}lm_head.lora_A.weight"] == (2, 16)
    assert shapes[f"{model}lm_head.lora_B.weight"] == (48, 2)
    fields = json.loads((tmp_path / files.CONFIG_FILE).read_text())
    assert fields["target_modules"] == ["lm_head", "model.embed_tokens", "self_attn.q_proj"]


REFUSED = {
    "method": ({"peft_type": "ADALORA"}, "peft_type='ADALORA'"),
    "biases": ({"bias": "all"}, "bias='all': trained biases"),
    "whole modules": ({"modules_to_save": ["score"]}, r"modules_to_save=\['score'\]"),
    "a changed base": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_are_not_read_are_named(case, tmp_path):
    changes, message = REFUSED[case]
    spec = lora.spec(models.spec(CONFIGS["llama"]), LoraConfig(2))
    files.save(tmp_path, spec, drawn(spec))
    path = tmp_path / files.CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        files.load(tmp_path, models.spec(CONFIGS["llama"]))


def test_adapters_of_other_models_are_refused(tmp_path):
    llama, gemma = models.spec(CONFIGS["llama"]), models.spec(CONFIGS["gemma3"])
    spec = lora.spec(gemma, LoraConfig(2))
    files.save(tmp_path, spec, drawn(spec))
    with pytest.raises(ValueError, match="modules that the model lacks: model.layers.*"):
        files.load(tmp_path, llama)
    unrolled = models.spec(
        models.llama(vocab_size=48, num_layers=2, embed_dim=16, num_heads=4, scan_layers=False)
    )
    spec = lora.spec(unrolled, LoraConfig(2, targets="layers/1/attention/query"))
    files.save(tmp_path, spec, drawn(spec))
    with pytest.raises(ValueError, match="1 of 2 layers of layers/attention/query, which are"):
        files.load(tmp_path, llama)


def test_what_has_no_place_in_the_format_is_named(tmp_path):
    moe = models.spec(CONFIGS["qwen3_moe"])
    spec = lora.spec(moe, LoraConfig(2, targets="experts/up$"))
    with pytest.raises(ValueError, match="layers/experts/up/a"):
        files.save(tmp_path, spec, drawn(spec))
    with pytest.raises(ValueError, match="holds one method, but the spec has 0"):
        files.save(tmp_path, moe, drawn(moe))
    spec = ia3.spec(models.spec(CONFIGS["gpt2"]), Ia3Config())
    with pytest.raises(ValueError, match="c_attn.ia3_l fuses 3 projections, but only"):
        files.save(tmp_path, spec, drawn(spec))


def test_a_table_with_two_uses_is_refused(tmp_path):
    """PEFT corrects only the look-up: a file would say something else here than there."""
    untied, tied = (models.spec(CONFIGS[family]) for family in ("llama", "gpt2"))
    changes = LoraConfig(2, targets="^embedding$")
    with pytest.raises(ValueError, match="also the head"):
        spec = lora.spec(tied, changes)
        files.save(tmp_path, spec, drawn(spec))
    spec = lora.spec(untied, changes)
    files.save(tmp_path, spec, drawn(spec))
    files.load(tmp_path, untied)
    with pytest.raises(ValueError, match="also the head"):
        files.load(tmp_path, {name: node for name, node in untied.items() if name != "head"})
    labels = models.with_head(CONFIGS["gpt2"], "classification", labels=2)
    spec = lora.spec(models.spec(labels), changes)
    files.save(tmp_path, spec, drawn(spec))
