"""From a base model to an aligned one, stage by stage, each over what the one before left.

All stages are tiny here; that each goes on bitwise where it was stopped is law 7, and that what is
frozen stays so to the bit is law 5.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import flags, runs, training
from experiments.recipe import Recipe, Training
from experiments.recipes.small import tiny
from experiments.tasks.comparing import Preferring, RewardModelling
from experiments.tasks.finetuning import Finetuning
from experiments.tasks.policy import PolicyTask
from experiments.tasks.reinforcing import Reinforcing, RewardSource
from llmjax import data, models, objectives, peft, rl
from llmjax.mesh import MeshConfig
from llmjax.optim import OptimizerConfig

OPTIMIZER = OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_steps=0, decays=())
TIMINGS = ("seconds", "goodput", "tokens_per_s", "_bytes", "mfu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with examples of all kinds and the run of a base model."""
    folder = tmp_path_factory.mktemp("stages")
    draw = np.random.default_rng(0)
    kind, unkind = ("good", "nice", "fine"), ("bad", "poor", "sad")
    pairs = [
        {
            "prompt": f"Word {i}?",
            "chosen": str(draw.choice(kind)),
            "rejected": str(draw.choice(unkind)),
        }
        for i in range(60)
    ]
    for name, records in {
        "sft": [{"instruction": p["prompt"], "output": p["chosen"]} for p in pairs],
        "pairs": pairs,
        "prompts": [{"prompt": p["prompt"]} for p in pairs],
        "judged": [
            {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
            for p in pairs
            for side in ("chosen", "rejected")
        ],
        "labels": [
            {"text": p[side], "label": side} for p in pairs for side in ("chosen", "rejected")
        ],
    }.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    model = models.llama(
        vocab_size=260, num_layers=1, embed_dim=32, num_heads=2, mlp_dim=48, max_length=96
    )
    recipe = dataclasses.replace(tiny(), model=model, steps=4, evaluate_every=0, sample_every=0)
    train(dataclasses.replace(recipe, checkpoint_every=0, optimizer=OPTIMIZER), folder / "base")
    return folder


def train(recipe: Training, folder: pathlib.Path) -> pathlib.Path:
    training.run(recipe, folder)
    return folder


def settings(root: pathlib.Path, examples: str, base: str = "base", **others):
    """What the recipes of all stages have here."""
    source = data.ExampleSource(examples, str(root / f"{examples}.jsonl"))
    return {
        "name": "stage",
        "base": str(root / base),
        "data": data.ExampleConfig(sources=(source,), template="plain", max_length=40),
        "optimizer": OPTIMIZER,
        "steps": 6,
        "batch_size": 8,
        "sequence_length": 80,
        "evaluate_every": 3,
        "checkpoint_every": 1,
        **others,
    }


def records(folder: pathlib.Path) -> list[dict]:
    """Metrics without timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: x for name, x in line.items() if not any(t in name for t in TIMINGS)}
        for line in lines
    ]


def assert_goes_on(recipe: Training, whole: pathlib.Path, cut: pathlib.Path) -> None:
    """Stopped after some steps and started again, a run is the run that was not."""
    train(recipe, whole)
    train(dataclasses.replace(recipe, steps=3), cut)
    train(recipe, cut)
    steps = [record for record in records(whole) if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, recipe.steps + 1))
    assert steps == [record for record in records(cut) if "loss" in record]
    one, other = (runs.load(folder, best=False) for folder in (whole, cut))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def lora() -> peft.MethodConfig:
    return peft.MethodConfig(name="lora", lora=peft.LoraConfig(rank=2))


def test_low_rank_corrections_of_a_base(root: pathlib.Path) -> None:
    recipe = Finetuning(**settings(root, "sft", peft=lora()))
    assert_goes_on(recipe, root / "lora", root / "lora_cut")
    base, tuned = runs.load(root / "base"), runs.load(root / "lora", best=False)
    for path, array in flat(base.params).items():
        found = flat(tuned.params)
        kept = found[path] if path in found else found[f"{path}/base"]
        assert np.asarray(kept).tobytes() == np.asarray(array).tobytes(), path
    losses = [r["validation_loss"] for r in records(root / "lora") if "validation_loss" in r]
    assert losses[-1] < losses[0]
    size = sum(f.stat().st_size for f in (root / "lora/checkpoints/6/state").rglob("*"))
    whole = sum(f.stat().st_size for f in (root / "base/checkpoints/4/state").rglob("*"))
    assert size < whole / 2


def flat(params) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def test_a_base_that_has_changed_is_refused(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    recipe = Finetuning(**settings(root, "sft", peft=lora(), steps=3))
    train(recipe, tmp_path / "run")
    known = json.loads((tmp_path / "run/base.json").read_text())
    (tmp_path / "run/base.json").write_text(json.dumps(known | {"fingerprint": "0"}))
    with pytest.raises(flags.FlagError, match="have changed since"):
        train(dataclasses.replace(recipe, steps=6), tmp_path / "run")
    with pytest.raises(flags.FlagError, match="have changed since"):
        runs.load(tmp_path / "run")


def test_a_base_that_is_not_there_is_named(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for base, what in (("", "--base is missing"), (str(tmp_path), "no model there")):
        recipe = Finetuning(**settings(root, "sft") | {"base": base})
        with pytest.raises(flags.FlagError, match=what):
            train(recipe, tmp_path / "run")
    recipe = Finetuning(**settings(root, "sft", sequence_length=200))
    with pytest.raises(flags.FlagError, match="up to 96 tokens"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_without_room_are_named(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Of 12 tokens, answers of 8 leave 4 for a prompt; two sequences of a comparison have 6."""
    rewards = (RewardSource("short", "tests.e2e.test_stages:shortness"),)
    policy = Reinforcing(
        **settings(root, "prompts", sequence_length=12, evaluation_prompts=4),
        rewards=rewards,
        rollouts=rl.RolloutConfig(prompts=8, samples=2, max_new_tokens=8),
        learning=rl.LearningConfig("grpo", epochs=1),
    )
    pairs = RewardModelling(**settings(root, "pairs", sequence_length=12))
    for recipe, left in ((policy, 4), (pairs, 6)):
        with pytest.raises(flags.FlagError, match=f"leaves {left} tokens .* needs 8 or more"):
            train(recipe, tmp_path / recipe.name)


def test_ppo_over_a_reward_model(root: pathlib.Path) -> None:
    """A critic of its own, rollouts shared by several steps, and a stop between them."""
    reward = RewardModelling(**settings(root, "pairs", steps=12))
    train(reward, root / "reward")
    found = [r for r in records(root / "reward") if "validation_accuracy" in r]
    assert found[-1]["validation_loss"] < found[0]["validation_loss"]
    recipe = Reinforcing(
        **settings(root, "prompts", evaluation_prompts=4),
        rewards=(RewardSource("model", str(root / "reward")),),
        gold=(RewardSource("length", "tests.e2e.test_stages:shortness"),),
        critic="model",
        rollouts=rl.RolloutConfig(prompts=16, max_new_tokens=8),
        learning=rl.LearningConfig("gae", epochs=2),
        policy=objectives.PolicyConfig(value_clip=0.2),
    )
    assert_goes_on(recipe, root / "ppo", root / "ppo_cut")
    rollouts = [r for r in records(root / "ppo") if "reward/model" in r]
    assert [r["step"] for r in rollouts] == [0, 4]
    assert rollouts[0]["kl_per_response"] == pytest.approx(0, abs=1e-4)
    assert rollouts[1]["kl_per_response"] != 0
    evaluations = [r for r in records(root / "ppo") if "validation_gold" in r]
    assert [r["step"] for r in evaluations] == [0, 3, 6]
    otherwise = dataclasses.replace(recipe.data, template="joined")
    with pytest.raises(
        flags.FlagError, match="trained with another chat template than the policy's"
    ):
        _ = PolicyTask(dataclasses.replace(recipe, data=otherwise), root / "ppo").mixture


def shortness(samples) -> list[float]:
    return [-float(len(sample.text)) for sample in samples]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "ipo", "orpo", "simpo"])
def test_preferences_with_a_frozen_copy(root: pathlib.Path, kind: str) -> None:
    recipe = Preferring(**settings(root, "pairs"), preference=objectives.PreferenceConfig(kind))
    assert_goes_on(recipe, root / kind, root / f"{kind}_cut")
    found = [r for r in records(root / kind) if "validation_accuracy" in r]
    assert found[-1]["validation_loss"] < found[0]["validation_loss"]
    if recipe.preference.needs_reference:
        tuned, base = runs.load(root / kind, best=False), runs.load(root / "base")
        jax.tree.map(np.testing.assert_array_equal, tuned.params["reference"], base.params)


@pytest.mark.slow
def test_judged_answers_in_micro_batches_on_a_mesh(root: pathlib.Path) -> None:
    """KTO, whose baseline is that of the batch however it is cut."""
    recipe = Preferring(
        **settings(root, "judged", peft=lora(), steps=3),
        preference=objectives.PreferenceConfig("kto"),
    )
    train(recipe, root / "kto")
    cut = {"mesh": MeshConfig(data=2, fsdp=2, context=2), "accumulate": 2}
    train(dataclasses.replace(recipe, **cut), root / "kto_cut")
    one, other = ([r for r in records(root / name) if "loss" in r] for name in ("kto", "kto_cut"))
    for name in ("loss", "kl", "chosen", "rejected", "grad_norm"):
        found = [[record[name] for record in run] for run in (one, other)]
        np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["none", "head"])
def test_policies_of_low_rank(root: pathlib.Path, critic: str) -> None:
    """GRPO with the base as its reference, and PPO with a value head on the policy."""
    compares = critic == "none"
    recipe = Reinforcing(
        **settings(root, "prompts", evaluation_prompts=4, peft=lora()),
        rewards=(RewardSource("short", "tests.e2e.test_stages:shortness"),),
        critic=critic,
        rollouts=rl.RolloutConfig(prompts=8, samples=2, max_new_tokens=8),
        learning=rl.LearningConfig("grpo" if compares else "gae", epochs=1, rounds=int(compares)),
    )
    assert_goes_on(recipe, root / critic, root / f"{critic}_cut")


@pytest.mark.slow
def test_a_policy_without_a_reference_holds_no_copy(root: pathlib.Path) -> None:
    recipe = Reinforcing(
        **settings(root, "prompts", evaluation_prompts=4),
        rewards=(RewardSource("short", "tests.e2e.test_stages:shortness"),),
        rollouts=rl.RolloutConfig(prompts=8, samples=2, max_new_tokens=8),
        learning=rl.LearningConfig("grpo", epochs=1),
        kl=rl.KLConfig(0.0, watch=False),
    )
    assert_goes_on(recipe, root / "alone", root / "alone_cut")
    assert "reference" not in runs.load(root / "alone", best=False).params
    rollouts = [r for r in records(root / "alone") if "answer_tokens" in r]
    assert rollouts and not any("kl_per_response" in r for r in rollouts)


QLORA = peft.MethodConfig(name="lora", quantize="int8", lora=peft.LoraConfig(rank=2))
ADAPTER = peft.MethodConfig(name="adapter", adapter=peft.AdapterConfig(dim=4))
PREFIX = peft.MethodConfig(name="prefix", prefix=peft.PrefixConfig(length=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "critic", "mesh"),
    [
        (QLORA, "model", MeshConfig()),
        (ADAPTER, "none", MeshConfig(data=4, fsdp=2)),
        (PREFIX, "head", MeshConfig(data=2, fsdp=2, tensor=2)),
        (peft.MethodConfig(), "none", MeshConfig(data=2, fsdp=2, context=2)),
    ],
    ids=["qlora", "adapter", "prefix", "full"],
)
def test_policies_of_every_method_on_meshes(root, tmp_path, method, critic, mesh) -> None:
    """The reference is the base, whatever is trained; answers are written on a mesh of their own.

    Where all is trained, a small budget of divergence is spent by the second iteration, and the run
    stays at its end until there is none.
    """
    recipe = Reinforcing(
        **settings(root, "prompts", evaluation_prompts=4, peft=method, mesh=mesh),
        rewards=(RewardSource("short", "tests.e2e.test_stages:shortness"),),
        critic=critic,
        rollouts=rl.RolloutConfig(prompts=8, samples=2, max_new_tokens=8),
        learning=rl.LearningConfig("grpo" if critic == "none" else "gae", epochs=1, kl="k2"),
        kl=rl.KLConfig(0.01),
        guards=rl.GuardConfig(kl_budget=0.02 if method.name == "full" else 0.0),
    )
    train(recipe, tmp_path / "run")
    found = [r["kl_per_response"] for r in records(tmp_path / "run") if "kl_per_response" in r]
    if method != PREFIX:  # which all queries see from the beginning
        assert found[0] == pytest.approx(0, abs=1e-4)
    assert found[1] != 0
    last = records(tmp_path / "run")[-1]["step"]
    if recipe.guards.kl_budget:
        assert found[1] > recipe.guards.kl_budget
        assert last == 2
        train(recipe, tmp_path / "run")
        assert records(tmp_path / "run")[-1]["step"] == 2
        recipe = dataclasses.replace(recipe, guards=rl.GuardConfig())
        train(recipe, tmp_path / "run")
        last = records(tmp_path / "run")[-1]["step"]
    assert last == 6


@pytest.mark.slow
def test_labels_of_texts(root: pathlib.Path) -> None:
    given = settings(root, "labels", steps=30)
    labels = dataclasses.replace(given["data"], labels=("rejected", "chosen"))
    train(Finetuning(**given | {"data": labels}, objective="classification"), root / "labels")
    found = [r for r in records(root / "labels") if "accuracy" in r]
    assert found[-1]["accuracy"] > 0.9
    assert (root / "labels/confusion.json").exists()


def test_a_recipe_says_what_does_not_fit_together() -> None:
    base = {"name": "x", "base": "y"}
    for wrong, what in (
        ({"critic": "model", "learning": rl.LearningConfig("grpo")}, "needs none"),
        ({"learning": rl.LearningConfig("gae")}, "needs values"),
        ({"learning": rl.LearningConfig("grpo"), "batch_size": 16}, "2 or more"),
        ({"critic": "head", "batch_size": 5}, "does not divide"),
        (
            {
                "critic": "head",
                "batch_size": 16,
                "policy": objectives.PolicyConfig(temperature=0.5),
            },
            "temperature",
        ),
        ({"critic": "head", "pretraining_rows": 2, "batch_size": 16}, "belong together"),
        (
            {"critic": "head", "pretraining_rows": 3, "batch_size": 16, "accumulate": 2},
            "pretraining_rows=3 does not divide .* in accumulate=2 parts",
        ),
        ({"critic": "head", "critic_base": "z", "batch_size": 16}, "critic=head has no model"),
        (
            {"critic": "head", "batch_size": 16, "rewards": (RewardSource("a", "b"),) * 2},
            "rewards: the names a, a must differ",
        ),
    ):
        with pytest.raises(ValueError, match=what):
            Reinforcing(**base, **wrong)
    for wrong, what in (
        ({"objective": "classification"}, "name the labels"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0: must be in \[0, 1\)"),
        ({"objective": "classification", "z_loss": 0.1}, "z_loss is not for objective=classif"),
    ):
        with pytest.raises(ValueError, match=what):
            Finetuning(**base, **wrong)
    assert isinstance(tiny(), Recipe)
