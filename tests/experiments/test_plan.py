"""The planner's answers hang together, and what is asked for wrongly is answered with the flag."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from experiments import plan_tables, planner
from experiments.flags import FlagError
from experiments.recipes import RECIPES
from llmjax import planning, spec
from llmjax.planning import cost, scaling

ROOT = pathlib.Path(__file__).parents[2]

# Many command lines in one process, since starting one takes seconds.
DRIVER = """
import contextlib, io, json, sys
from absl import flags as absl_flags
from absl.testing import flagsaver
from experiments import flags, plan
answers = []
for line in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            plan.main(flags.parse(["plan", *line]))
        except flags.FlagError as error:
            print(error, file=err)
        except SystemExit as exit_:
            code = exit_.code
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


def run(*lines: list[str]) -> list[tuple[int, str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(answer) for answer in json.loads(done.stdout)]


GPT3 = ["--params=174.6e9", "--tokens=300e9", "--device=v100", "--chips=1000", "--days=34"]
MISTAKES = {
    "": "nothing to plan: give --recipe, --params, --flops",
    "--flops=-1": "--flops=-1.0: must be above 0",
    "--flops=nan": "--flops=nan: must be above 0",
    "--flops=1e20 --money=5": "--flops and --money: give only one budget",
    "--loss=1.5": "--loss=1.5: no model gets below E = 1.817",
    "--hours=3": "--hours depends on the chip: give --device too",
    "--flops=1e20 --chips=8": "--chips depends on the chip: give --device too",
    "--params=1e9 --utilization=0.5": "--utilization depends on the chip: give --device too",
    "--params=1e9 --steps=3": "--steps changes a recipe: give --recipe too",
    "--flops=1e20 --tokens=1e9": "--tokens is about a training run: give --recipe",
    "--runs=a.csv --law=hoffmann": "--law=hoffmann: --runs fits a law; leave out one of them",
    "--params=1e9 --recipe=tiny": "--params is for a model without a recipe",
    "--params=1e9 --days=3 --device=v5e": "--days is about a training run: give --tokens too",
    "--flops=1e20 --days=3 --device=v5e": "--days is about a training run: give --recipe",
    "--money=9 --device=tpu7x": "--money: the price of tpu7x is unknown: give --price",
    "--flops=1e20 --device=v5e --chips=0": "--chips=0: must be at least 1",
    "--flops=1e20 --device=v5e --utilization=40": "--utilization=40.0: must be in (0, 1]",
    "--flops=1e20 --plot=a.gif": "--plot=a.gif: a.gif: a chart is written as .png or .svg",
    "--params=1e9 --plot=a.svg": "--plot: there is no budget to draw curves around; give --flops",
    "--runs=nowhere.csv": "--runs:",
    "--device=h10 --flops=1": "--device=h10: value should be one of",
}


def test_the_command_line(tmp_path: pathlib.Path) -> None:
    runs, plot = tmp_path / "runs.jsonl", tmp_path / "isoflops.svg"
    runs.write_text("".join(json.dumps(row) + "\n" for row in ladder()))
    budget = ["--flops=1e20", f"--runs={runs}", f"--plot={plot}"]
    lines = [
        [*GPT3, "--json"],
        GPT3,
        [*budget, "--json"],
        budget,
        ["--recipe=tiny", "--device=v5e", "--chips=3", "--json"],
        ["--loss=2.141", "--json"],
        ["--help"],
        *(line.split() for line in MISTAKES),
    ]
    gpt3, table, fitted, text, tiny, loss, shown, *wrong = run(*lines)
    for code, _, err in (gpt3, table, fitted, text, tiny, loss):
        assert (code, err) == (0, "")
    found = json.loads(gpt3[1])
    assert found["model"]["flops"] == pytest.approx(3.14e23, rel=0.002)
    assert found["claim"]["utilization"] == pytest.approx(0.855, abs=0.002)
    assert not found["claim"]["believable"]
    assert "needs 86% of the chips' peak" in found["warnings"][0]
    assert "warning --days=34: needs 86%" in " ".join(table[1].split())
    law = json.loads(fitted[1])["fit"]
    assert law["alpha"]["value"] == pytest.approx(scaling.BESIROGLU.alpha, rel=1e-3)
    assert json.loads(fitted[1])["overtraining"][-1]["extra"] is None  # never: JSON has no infinity
    assert "your runs" in text[1]
    assert plot.read_text().startswith("<?xml")
    assert "does not divide over 3 devices" in json.loads(tiny[1])["warnings"][0]
    assert json.loads(loss[1])["budget"]["optima"][-1]["loss"] == pytest.approx(2.141)
    assert "--utilization" in shown[1]
    for (line, message), (_, out, err) in zip(MISTAKES.items(), wrong, strict=True):
        assert not out, line
        assert message in err, line


def ladder() -> list[dict[str, float]]:
    law = scaling.BESIROGLU
    pairs = [(n, ratio * n) for n in (1e7, 3e7, 1e8, 3e8) for ratio in (5, 20, 80)]
    return [{"params": n, "tokens": d, "loss": law.loss(n, d)} for n, d in pairs]


@pytest.mark.parametrize("name", ["gpt2_small", "bert_base", "electra_base"])
def test_operations_beside_the_rule(name: str) -> None:
    """Decoders' heads and attention exceed it; encoders' heads read a share of the tokens."""
    recipe = RECIPES[name]()
    work = planner.work_of(recipe, None, None)
    assert work is not None
    described = planner.describe(work)
    assert described["tokens"] == recipe.steps * recipe.batch_size * recipe.sequence_length
    ratio = described["flops_per_token"] / described["flops_per_token_6n"]
    assert 0.6 < ratio < 1.2
    assert (ratio > 1) == (recipe.objective == "clm")
    if name == "bert_base":
        assert work.params == work.active == spec.count(planner.objective.param_spec(recipe))


def test_data_at_20_to_100_tokens_a_parameter() -> None:
    cluster = cost.Cluster(planning.chip("h100"), 8, dollars=2.0)
    work = planner.work_of(None, 7e9, None)
    assert work is not None
    first, _, last = planner.data_needed(work, cluster)
    assert (first["tokens"], last["tokens"]) == (140e9, 700e9)
    assert last["flops"] == 6 * 7e9 * 700e9
    assert last["dollars"] == pytest.approx(2.0 * last["chip_hours"])
    assert last["days"] == pytest.approx(last["chip_hours"] / 8 / 24)


def test_a_budget_is_spent_by_every_law() -> None:
    for row in planner.optima(1e22, "besiroglu", scaling.BESIROGLU):
        assert 6 * row["params"] * row["tokens"] == pytest.approx(1e22)
    rows = planner.overtraining(1e22, scaling.BESIROGLU, 1e9)
    assert [row["params"] for row in rows if row["given"]] == [1e9]
    assert sorted(rows, key=lambda row: -row["params"]) == rows


@pytest.mark.parametrize("name", ["bert_base", "electra_base", "llama3_8b"])
def test_memory_of_every_objective(name: str) -> None:
    recipe = RECIPES[name]()
    found = planner.memory(recipe, cost.Cluster(planning.chip("v5p"), 16))
    assert found["total"] < 2 * found["available"]
    items = ("parameters", "optimizer", "batch", "gradients", "weights", "activations", "working")
    assert sum(found[item] for item in items) == pytest.approx(found["total"])
    if name == "llama3_8b":
        assert found["mesh"]["fsdp"] == 16
        assert found["parameters"] == pytest.approx(4 * 8.03e9 / 16, rel=0.001)
        shown = [row for table in plan_tables._memory({"memory": found}) for row in table.rows]
        assert len(shown) == len(items) + 1


def test_the_two_devices_of_a_chip_share_its_memory() -> None:
    found = planner.memory(RECIPES["tiny"](), cost.Cluster(planning.chip("tpu7x"), 4))
    assert found["mesh"]["data"] == 8
    assert found["available"] == 96 * 2**30
    (table,) = plan_tables._memory({"memory": found})
    assert table.title == "Peak memory per device (2 to a chip), GiB (mesh data=8)"


def test_runs_that_are_folders(tmp_path: pathlib.Path) -> None:
    folders = []
    for index, row in enumerate(ladder()):
        folder = tmp_path / str(index)
        folder.mkdir()
        recipe = dataclasses.replace(RECIPES["tiny"](), batch_size=1)
        (folder / "config.json").write_text(
            json.dumps({"recipe": planner.runs.fields.to_json(recipe)})
        )
        step = int(row["tokens"]) // recipe.sequence_length
        lines = [{"step": 1, "loss": 9.0}, {"step": step, "validation_loss": row["loss"]}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(str(folder))
    with pytest.raises(FlagError, match="--runs: params: all runs have 1 different value"):
        planner.fit_runs(folders)
    read = planner._runs_at(pathlib.Path(folders[0]))
    assert read.loss.tolist() == [ladder()[0]["loss"]]
    assert read.params.tolist() == [spec.count(planner.objective.param_spec(RECIPES["tiny"]()))]
    (tmp_path / "0" / "metrics.jsonl").write_text("")
    with pytest.raises(FlagError, match="no validation_loss"):
        planner.fit_runs(folders[:1])


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (plan_tables.count, 8.03e9, "8.03 B"),
        (plan_tables.count, 999.9e9, "1 T"),
        (plan_tables.count, 12.0, "12"),
        (plan_tables.count, 1.5e16, "1.5e+16"),
        (plan_tables.count, float("inf"), "never"),
        (plan_tables.duration, 34.0, "34 days"),
        (plan_tables.duration, 0.5, "12 hours"),
        (plan_tables.duration, 730.5, "2 years"),
        (plan_tables.duration, 1e-6, "0.0864 seconds"),
        (plan_tables.dollars, None, "—"),
        (plan_tables.dollars, 52530.2, "$52,530"),
        (plan_tables.dollars, 4.9e6, "$4.9 M"),
    ],
)
def test_numbers_for_people(show: Any, value: Any, text: str) -> None:
    assert show(value) == text
