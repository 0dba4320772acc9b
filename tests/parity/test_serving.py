"""What tuned runs export, in the hands of transformers and PEFT."""

import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import runs
from experiments.tasks.comparing import RewardModelling
from experiments.tasks.finetuning import Finetuning
from llmjax import data, hf, models, peft, tree
from llmjax import spec as specs
from llmjax.data.tokenizer import ByteTokenizer

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
their_peft = pytest.importorskip("peft")

MODEL = models.llama(
    vocab_size=260, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24, max_length=96
)
METHODS = {
    "lora": peft.MethodConfig(name="lora", lora=peft.LoraConfig(rank=2)),
    "ia3": peft.MethodConfig(name="ia3"),
}


def drawn(spec):
    """Numbers large enough to show, also of adapters, which begin with 0 or 1."""
    number = iter(range(10_000))

    def one(path, param):
        key = jax.random.fold_in(jax.random.key(0), next(number))
        return 0.3 * jax.random.normal(key, param.shape) + ("norm" in path)

    return tree.map_with_path(one, spec, is_leaf=specs.is_param)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["lm", "reward", "classification"])
def test_merged_and_as_an_adapter(tmp_path: pathlib.Path, kind: str, method: str) -> None:
    """The head of sequences is new, so PEFT's files have it beside the adapter."""
    hf.save(tmp_path / "base", MODEL, drawn(models.spec(MODEL)), extra={"pad_token_id": 0})
    (tmp_path / "data").mkdir()
    ByteTokenizer().save(tmp_path / "data")
    given = {"name": "x", "base": str(tmp_path / "base"), "peft": METHODS[method]}
    given["sequence_length"] = 96
    if kind == "reward":
        recipe = RewardModelling(**given)
    else:
        labels = data.ExampleConfig(labels=("a", "b", "c") if kind == "classification" else ())
        objective = "classification" if kind == "classification" else "sft"
        recipe = Finetuning(**given, data=labels, objective=objective)
    task = runs.task_of(recipe, tmp_path)
    base = hf.load(tmp_path / "base")[1]
    added = drawn(task.model_spec)
    kept = {name: node for name, node in base.items() if name != "head" or kind == "lm"}
    params = peft.attach(kept, peft.extract(added, task.model_spec))
    if kind != "lm":
        params["head"] = added["head"]
    model = runs.TrainedModel(task, ByteTokenizer(), params, 1)
    runs.export(model, tmp_path / "merged", dtype="float32")
    runs.export_adapter(model, tmp_path / "adapter", dtype="float32")

    tokens = np.random.default_rng(0).integers(4, 260, (2, 12), np.int32)
    hidden, _ = models.apply(params, tokens, task.config)
    expected = np.asarray(models.logits(params, hidden, task.config)).reshape(2, -1)
    auto = "CausalLM" if kind == "lm" else "SequenceClassification"
    auto = getattr(transformers, f"AutoModelFor{auto}")
    labels = json.loads((tmp_path / "merged/config.json").read_text()).get("id2label", {})
    whole = {"num_labels": len(labels)} if labels else {}
    for found in (
        auto.from_pretrained(tmp_path / "merged"),
        their_peft.PeftModel.from_pretrained(
            auto.from_pretrained(tmp_path / "base", **whole), tmp_path / "adapter"
        ),
    ):
        with torch.no_grad():
            logits = found.eval()(torch.tensor(tokens, dtype=torch.long)).logits
        np.testing.assert_allclose(logits.numpy().reshape(2, -1), expected, rtol=1e-4, atol=1e-4)
