"""Outputs, gradients and files are those of `peft`, on random tiny models of transformers."""

import dataclasses

import jax
import numpy as np
import pytest

from llmjax import models, peft, tree
from llmjax.hf.files import open_file
from llmjax.peft import Ia3Config, LoraConfig, LoraRule, files, ia3, lora
from llmjax.spec import is_param, map_params
from tools import make_peft_goldens
from tools.golden_models import CONFIGS
from tools.make_goldens import draw_inputs, torch_model
from tools.make_peft_goldens import adapted_model, logits

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("peft")

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVERY = r"/(attention|mlp)/(query|key|value|out|gate|up|down)$"

# family, changes of its configuration, ours, PEFT's
CASES = {
    "llama": (
        "llama",
        {},
        LoraConfig(4, 8.0),
        theirs.LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA),
    ),
    "unrolled": (
        "qwen2",
        {"scan_layers": False},
        LoraConfig(4, 8.0, targets=r"layers/1/attention/(query|out)$|layers/0/mlp/down$"),
        theirs.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=[
                "layers.1.self_attn.q_proj",
                "layers.1.self_attn.o_proj",
                "layers.0.mlp.down_proj",
            ],
        ),
    ),
    "rslora and ranks": (
        "gemma2",
        {},
        LoraConfig(
            4, 8.0, rules=(LoraRule("/down$", 2), LoraRule("/query$", alpha=3.0)), rslora=True
        ),
        theirs.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=LLAMA,
            rank_pattern={"down_proj": 2},
            alpha_pattern={"q_proj": 3},
            use_rslora=True,
        ),
    ),
    "tables": (
        "llama",
        {"tied": False},
        LoraConfig(4, 8.0, targets=r"^(embedding|head)$|/value$"),
        theirs.LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "v_proj"]),
    ),
    "bert": (
        "bert",
        {},
        LoraConfig(4, 8.0),
        theirs.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=r".*encoder\.layer\.\d+\..*(query|key|value|dense)",
        ),
    ),
    "dora": (
        "qwen2",
        {},
        LoraConfig(4, 8.0, dora=True),
        theirs.LoraConfig(r=4, lora_alpha=8, target_modules=LLAMA, use_dora=True),
    ),
    "a joined projection": (
        "gpt2",
        {},
        LoraConfig(4, 8.0),
        theirs.LoraConfig(
            r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
        ),
    ),
    "joined projections": (
        "modernbert",
        {},
        LoraConfig(4, 8.0, dora=True),
        theirs.LoraConfig(
            r=4, lora_alpha=8, target_modules=r".*layers\.\d\..*(Wqkv|Wi|Wo)", use_dora=True
        ),
    ),
    "ia3": (
        "llama",
        {},
        Ia3Config(),
        theirs.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "ia3 with biases": (
        "bert",
        {},
        Ia3Config(),
        theirs.IA3Config(
            target_modules=r".*(self\.key|self\.value|\d\.output\.dense)",
            feedforward_modules=r".*\d\.output\.dense",
        ),
    ),
}


def described(spec):
    """Shapes and names, and what leaf types say besides."""
    plain = map_params(lambda param: dataclasses.replace(param, init=None), spec)
    return jax.tree.leaves(plain, is_leaf=is_param), jax.tree.structure(spec, is_leaf=is_param)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_peft(case, tmp_path, draw_params, apply, assert_close):
    family, changes, ours, other = CASES[case]
    config = dataclasses.replace(CONFIGS[family], **changes)
    batch = draw_inputs(config, "right")
    model = adapted_model(config, other)
    model.save_pretrained(tmp_path / "theirs")
    spec, adapter = files.load(tmp_path / "theirs", models.spec(config))
    method = lora if isinstance(ours, LoraConfig) else ia3
    assert described(spec) == described(method.spec(models.spec(config), ours))
    params = peft.attach(draw_params(config), adapter)
    check(config, spec, params, model, batch, apply, assert_close)
    # And back: PEFT reads what we write.
    files.save(tmp_path / "ours", spec, params)
    again = theirs.PeftModel.from_pretrained(torch_model(config), tmp_path / "ours").eval()
    np.testing.assert_allclose(logits(again, config), logits(model, config), atol=1e-5)


def test_the_golden_adapter_is_what_peft_writes(tmp_path):
    make_peft_goldens.write(tmp_path)
    for name in ("logits.npy", files.TENSORS_FILE):
        read = np.load if name.endswith("npy") else lambda path: dict(open_file(path))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            read(tmp_path / name),
            read(make_peft_goldens.ADAPTER / name),
        )


def check(config, spec, params, model, batch, apply, assert_close):
    """Logits, and the gradients of a fixed sum of them, by the names in PEFT's files."""
    there = batch["segment_ids"][..., None] != 0
    weights = np.random.RandomState(1).randn(*there.shape[:2], config.vocab_size) * there
    weights = weights.astype(np.float32)
    trained, frozen = tree.partition(params, peft.trained(spec))

    def total(trained):
        found = apply(config, tree.combine(trained, frozen), batch)
        return (found * weights).sum(), found

    grads, found = jax.jit(jax.grad(total, has_aux=True))(trained)
    run = {"input_ids": batch["tokens"], "attention_mask": batch["segment_ids"]}
    if "token_types" in batch:
        run["token_type_ids"] = batch["token_types"]
    out = model(**{name: torch.from_numpy(x.astype(np.int64)) for name, x in run.items()}).logits
    (out * torch.from_numpy(weights)).sum().backward()
    named, _ = peft.fused.tensors(spec, grads)
    actual = {name: tensor.read() for name, tensor in named.items()} | {"logits": found}
    expected = {"logits": out.detach().numpy()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected[name.replace(".default", "").replace("vector.weight", "vector")] = (
                parameter.grad.numpy()
            )
    assert set(actual) == set(expected)
    for name, value in expected.items():
        if actual[name].shape != value.shape:
            actual[name] = of_the_joined_one(actual[name], value.shape)
    assert_close(config, actual, expected, batch)


def of_the_joined_one(gradient, shape):
    """The gradient by the A or B that parts of a projection share, from those by each part's."""
    if gradient.shape[1] == shape[1]:
        return gradient.reshape(-1, *shape).sum(0)
    count = gradient.shape[1] // shape[1]
    parts = gradient.reshape(count, -1, count, shape[1])
    assert not any(parts[i, :, j].any() for i in range(count) for j in range(count) if i != j)
    return np.concatenate([parts[i, :, i] for i in range(count)])
