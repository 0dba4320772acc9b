"""Recipes are whole: they fit together, say what they are, and survive being saved."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from absl import flags as absl_flags

from experiments import fields, flags, objective, versions
from experiments import recipe as recipe_module
from experiments.recipe import Recipe
from experiments.recipes import RECIPES, STAGES, mixture, small
from llmjax import spec
from llmjax.data.config import Source

ROOT = pathlib.Path(__file__).parents[2]
SURFACE = pathlib.Path(__file__).with_name("flags.txt")

ENTRY = '''"""An entry point."""

from experiments import flags
from experiments.recipes import RECIPES

flags.define(RECIPES)

if __name__ == "__main__":
    flags.run(lambda argv: print(flags.resolve().model.num_layers))
'''


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_described_and_survives_json(name: str) -> None:
    recipe = RECIPES[name]()
    assert recipe.name == name
    summary = (RECIPES[name].__doc__ or "").partition("\n")[0]
    assert summary.endswith(".")
    assert fields.from_json(Recipe, json.loads(json.dumps(fields.to_json(recipe)))) == recipe


@pytest.mark.parametrize("stage", STAGES)
def test_a_long_run_is_saved_on_its_way(stage: str) -> None:
    """A kill must not lose all of it, and evaluated steps are to be among those saved."""
    for make in STAGES[stage].values():
        recipe = make()
        if recipe.steps > 200 and getattr(recipe, "has_text", True):
            assert 0 < recipe.checkpoint_every < recipe.steps, recipe.name
            every = sorted((recipe.checkpoint_every, recipe.evaluate_every))
            assert every[1] % every[0] == 0, recipe.name


def test_every_flag_is_documented() -> None:
    assert [leaf.name for leaf in fields.leaves(Recipe) if not leaf.doc] == []


def test_the_flags_are_those_that_users_know() -> None:
    """A flag that goes away breaks somebody's command. If that is meant, change flags.txt."""
    values = absl_flags.FlagValues()
    flags.define(RECIPES, flag_values=values)
    assert sorted(values) == SURFACE.read_text().split()


def test_the_chapters_shares_are_whole() -> None:
    assert sum(mixture.SHARES.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"z_loss": -1.0}, "z_loss=-1.0: must not be negative"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"sequence_length": 512}, "longer than model.max_length=256"),
        ({"batch_size": 6, "accumulate": 4}, "choose a multiple of 4"),
        (
            {"batch_size": 6, "mesh.fsdp": 2, "mesh.data": 2},
            "over 4 devices .mesh stage × data × fsdp",
        ),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0: must be at least 1"),
        ({"model.attention.window": 64}, "pattern=global has none: set the pattern too"),
        ({"model.vocab_size": 100}, "set --model.vocab_size=260"),
        ({"data.tokenizer.kind": "sentencepiece"}, "set --model.vocab_size=4096"),
    ],
)
def test_what_does_not_fit_together_is_said(changes: dict[str, Any], message: str) -> None:
    paths = {tuple(name.split(".")): value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        fields.replace(small.tiny(), paths)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny", {"objective": "mlm"}, "needs a model with head.kind=mlm and attention.causal=Fal"),
        (
            "modernbert_tiny",
            {"objective": "clm"},
            "needs a model with head.kind=lm and attention.causal",
        ),
        ("modernbert_tiny", {"model.attention.causal": True}, "but modernbert has mlm and True"),
        ("modernbert_tiny", {"objective": "rtd"}, "head.kind=rtd"),
        ("deberta_tiny", {"objective": "mlm"}, "but deberta-v2 has rtd and False"),
        ("modernbert_tiny", {"sample_every": 5}, "sample_every=5 is for objective=clm"),
        ("deberta_tiny", {"z_loss": 0.1}, "z_loss=0.1 is for objective=clm"),
        ("modernbert_tiny", {"masking.rate": 0.0}, "masking.rate=0.0"),
        ("deberta_tiny", {"replacement.width_share": 2.0}, "replacement.width_share=2.0"),
        ("deberta_tiny", {"replacement.weight": 0.0}, "replacement.weight=0.0"),
    ],
)
def test_an_objective_and_its_model_fit_together(
    name: str, changes: dict[str, Any], message: str
) -> None:
    paths = {tuple(path.split(".")): value for path, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        fields.replace(RECIPES[name](), paths)


def test_published_encoders_have_their_published_sizes() -> None:
    """Devlin et al. 2019, section 3, and Clark et al. 2020, table 6."""
    vocab_rows = (30528 - 30522) * 769  # rounded up; a column is the output's bias
    bert = spec.count(objective.param_spec(RECIPES["bert_base"]()))
    transform = 768 * 768 + 768 + 2 * 768
    # 109,482,240 with a pooler (transformers' BertModel) becomes an MLM head's.
    assert bert == 109_482_240 - (768 * 768 + 768) + transform + 30522 + vocab_rows
    recipe = RECIPES["electra_base"]()
    generator = objective.generator(recipe)
    sizes = (generator.embed_dim, generator.num_heads, generator.hidden_dim, generator.table_dim)
    assert sizes == (256, 4, 1024, 768)


def test_a_mesh_axis_left_open_is_not_judged_early() -> None:
    fields.replace(small.tiny(), {("mesh", "data"): -1, ("batch_size",): 7})


def test_the_corpus_is_written_once_as_a_source(tmp_path: pathlib.Path) -> None:
    (source,) = recipe_module.data_config(small.tiny(), tmp_path).sources
    path = pathlib.Path(source.path)
    assert path.parent == tmp_path
    written = path.stat().st_mtime_ns
    recipe_module.data_config(small.tiny(), tmp_path)
    assert path.stat().st_mtime_ns == written


def test_ones_own_text_takes_the_place_of_the_corpus(tmp_path: pathlib.Path) -> None:
    mine = (Source("mine", "/mine"),)
    data = dataclasses.replace(small.tiny().data, sources=mine)
    recipe = dataclasses.replace(small.tiny(), data=data)
    assert recipe_module.data_config(recipe, tmp_path).sources == mine
    assert not list(tmp_path.iterdir())


def test_a_recipe_without_text_says_how_to_give_some(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="--data.sources=name=mine"):
        recipe_module.data_config(RECIPES["w1"](), tmp_path)


def test_versions_are_json_and_name_the_packages() -> None:
    found = versions.versions()
    assert {"python", "llmjax", "jax", "device_kind", "cpu_count"} <= set(found)
    assert json.loads(json.dumps(found)) == found


def test_an_entry_point(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "entry.py"
    script.write_text(ENTRY)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r})"]
        command[-1] += (
            f"; sys.argv[0] = {str(script)!r}; runpy.run_path(sys.argv[0], None, '__main__')"
        )
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)

    assert run("--recipe=tiny", "--model.num_layers=7").stdout == "7\n"
    shown = run("--helpfull").stdout
    assert "--model.num_layers" in shown
    # absl's own flags, which nobody asked about.
    assert not any(word in shown for word in ("--verbosity", "--logtostderr", "absl"))
    wrong = run("--recipe=tiny", "--batch_size=3", "--accumulate=2")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("batch_size=3 does not divide")
