"""Encoders by the entry points: trained, killed, measured, exported; and refused to write."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import fields, flags, objective, runs, training
from experiments.recipe import Recipe
from experiments.recipes import RECIPES, encoders
from experiments.tasks import base
from llmjax import data, hf, models, objectives, planning
from llmjax import spec as specs
from llmjax.data.tokenizer import ByteTokenizer

DATA = data.DataConfig(tokenizer=data.TokenizerConfig(kind="bytes"), validation_share=0.1)
SMALLEST = {
    "model.vocab_size": 260,
    "model.num_layers": 1,
    "model.embed_dim": 32,
    "model.max_length": 32,
    "sequence_length": 32,
    "batch_size": 8,
    "steps": 6,
    "evaluate_every": 3,
    "evaluate_batches": 2,
    "checkpoint_every": 3,
    "optimizer.warmup_steps": 1,
    "corpus": "python_topics",
}


def smallest(name: str, **changes: object) -> Recipe:
    paths = {tuple(path.split(".")): value for path, value in (SMALLEST | changes).items()}
    recipe = electra() if name == "electra" else RECIPES[name]()
    return fields.replace(dataclasses.replace(recipe, data=DATA), paths)


def electra() -> Recipe:
    """Replaced tokens, with a discriminator whose head transformers has."""
    return dataclasses.replace(
        RECIPES["deberta_tiny"](),
        model=models.electra(**encoders.SMALL),
        replacement=objectives.ReplacementConfig(),
    )


@pytest.fixture(
    scope="module", params=["electra", pytest.param("modernbert_tiny", marks=pytest.mark.slow)]
)
def run_dir(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        # Measuring it on eight devices that share two cores takes longer than the run.
        patch.setattr(planning, "peak_flops", lambda devices: 1e12)
        report = training.run(smallest(request.param), folder)
    assert report.exists()
    return folder


def records(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_and_evaluations_are_the_objectives(run_dir: pathlib.Path) -> None:
    model = runs.load(run_dir, best=False)
    evaluations = [r for r in records(run_dir) if "validation_loss" in r]
    assert [r["step"] for r in evaluations] == [3, 6]
    training_records = [r for r in records(run_dir) if "loss" in r]
    assert all(r["tokens_per_s"] * r["seconds"] == pytest.approx(256) for r in training_records)
    of_token = objective.training_flops(model.recipe)
    assert all(
        r["mfu"] * 1e12 == pytest.approx(r["tokens_per_s"] * of_token) for r in training_records
    )
    found = runs.evaluate_model(model, run_dir / "data", 8)
    if model.recipe.objective == "mlm":
        assert found["pseudo_perplexity"] == pytest.approx(np.exp(found["validation_loss"]))
        assert "bits_per_byte" not in found
    else:
        joint = found["generator_loss"] + 50 * found["discriminator_loss"]
        assert found["validation_loss"] == pytest.approx(joint, rel=1e-5)
        length = model.recipe.sequence_length
        limit = model.recipe.masking.max_predictions(length) / length
        assert 0 < found["replaced"] <= limit
    assert runs.evaluate_model(model, run_dir / "data", 8) == found


def test_exported_models_load_elsewhere(run_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = runs.load(run_dir)
    classes = {
        "model": transformers.ModernBertForMaskedLM,
        "discriminator": transformers.ElectraForPreTraining,
        "generator": transformers.ElectraForMaskedLM,
    }
    for name, (config, params) in objective.trained_models(model.recipe, model.params).items():
        part = None if name == "model" else name
        runs.export(model, tmp_path / name, part=part, dtype="float32")
        _, info = classes[name].from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        again, read = hf.load(tmp_path / name)
        assert again.head.kind == config.head.kind
        np.testing.assert_array_equal(read["embedding"], params["embedding"])
    with pytest.raises(flags.FlagError, match="already"):
        runs.export(model, tmp_path / name, part=part, dtype="float32")
    if model.recipe.objective == "mlm":
        with pytest.raises(flags.FlagError, match="has one model"):
            runs.export(model, tmp_path / "other", part="generator", dtype="float32")


def test_fine_tuning_begins_with_the_main_model(run_dir: pathlib.Path) -> None:
    """Of replaced-token detection, that is the discriminator alone."""
    found = base.find(str(run_dir))
    params, _ = found.load()
    declared = specs.map_params(lambda param: param.shape, models.spec(found.config))
    assert jax.tree.map(np.shape, params) == declared


def test_a_head_without_a_place_in_checkpoints_is_left_out(tmp_path: pathlib.Path) -> None:
    recipe = smallest("deberta_tiny")
    params = specs.init(jax.random.key(0), objective.param_spec(recipe))
    model = runs.TrainedModel(runs.task_of(recipe, tmp_path), ByteTokenizer(), params, 0)
    assert runs.export(model, tmp_path, dtype="float32") == "rtd"
    config, read = hf.load(tmp_path)
    assert config.head.kind == "none"
    np.testing.assert_array_equal(read["embedding"], params["generator"]["embedding"])


def test_an_encoder_does_not_write(run_dir: pathlib.Path) -> None:
    command = [sys.executable, "-m", "experiments.generate", f"--run_dir={run_dir}", "--prompt=a"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "cannot generate text" in result.stderr


def test_words_begin_with_white_space_for_whole_word_masking() -> None:
    recipe = smallest("modernbert_tiny", **{"masking.whole_word": True, "model.vocab_size": 264})
    tokenizer = ByteTokenizer()
    loss = objective.make_loss(recipe, tokenizer)
    rows = np.array(
        [[tokenizer.bos_id, *tokenizer.encode("one two six ten and"), tokenizer.eos_id]]
    )
    prepared = loss.prepare({"tokens": np.repeat(rows, 64, 0).astype(np.int32)}, None)
    hidden = np.zeros(rows.shape[1], int)
    for positions, targets in zip(
        prepared["masked_positions"], prepared["masked_targets"], strict=True
    ):
        chosen = set(np.asarray(positions)[np.asarray(targets) >= 0].tolist())
        hidden[list(chosen)] += 1
        words = [{1, 2, 3}, *(set(range(i, i + 4)) for i in (4, 8, 12, 16))]
        assert all(word <= chosen or not word & chosen for word in words)
    assert hidden[0] == hidden[-1] == 0
    assert (hidden[1:-1] > 0).all()


def test_a_narrower_generator_shares_the_discriminators_tables() -> None:
    recipe = smallest("deberta_tiny", **{"replacement.width_share": 0.5})
    assert set(objective.param_spec(recipe)) == {"generator", "discriminator"}
    generator = objective.generator(recipe)
    assert (generator.embed_dim, generator.embedding.dim) == (16, 32)
