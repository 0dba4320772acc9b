"""Tuned runs in use: spoken to, exported, measured, cross-validated.

What a run trained is drawn here, adapters, critics and references too, so nothing has to learn
first. Exported weights are judged by the logits of the adapted model.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import fields, flags, folds, runs, training, writing
from experiments.recipe import Training
from experiments.tasks.comparing import Preferring, RewardModelling
from experiments.tasks.finetuning import Finetuning
from experiments.tasks.reinforcing import Reinforcing, RewardSource
from llmjax import data, evaluation, hf, models, objectives, peft, rl, sampling, tree
from llmjax import spec as specs
from llmjax.data.tokenizer import ByteTokenizer
from llmjax.optim import OptimizerConfig
from llmjax.train.report import write_report

MODEL = models.llama(
    vocab_size=260, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24, max_length=96
)
METHODS = {
    "full": peft.MethodConfig(),
    "lora": peft.MethodConfig(name="lora", lora=peft.LoraConfig(rank=2)),
    "dora": peft.MethodConfig(name="lora", lora=peft.LoraConfig(rank=2, dora=True)),
    "ia3": peft.MethodConfig(name="ia3"),
    "prefix": peft.MethodConfig(name="prefix", prefix=peft.PrefixConfig(length=3)),
    "adapter": peft.MethodConfig(name="adapter", adapter=peft.AdapterConfig(dim=4)),
}
WORDS = [(f"Word {i}?", "good" if i % 3 else "very good indeed", "bad") for i in range(24)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a base model's checkpoint and with examples."""
    folder = tmp_path_factory.mktemp("serving")
    hf.save(folder / "base", MODEL, drawn(models.spec(MODEL)))
    ByteTokenizer().save(folder / "base")
    for name, records in {
        "sft": [{"instruction": p, "output": c} for p, c, _ in WORDS],
        "pairs": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in WORDS],
        "prompts": [{"prompt": p} for p, _, _ in WORDS],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def drawn(spec):
    """Numbers large enough to show in logits, where adapters begin with 0 too."""
    key = jax.random.key(0)

    def one(path, param):
        drawn = jax.random.normal(jax.random.fold_in(key, hash_of(path)), param.shape)
        return 0.3 * drawn + ("norm" in path or "magnitude" in path)

    return tree.map_with_path(one, spec, is_leaf=specs.is_param)


def hash_of(path: str) -> int:
    return data.splits.draw(path) % 2**31


def settings(root: pathlib.Path, examples: str = "sft", method: str = "full", **others):
    source = data.ExampleSource(examples, str(root / f"{examples}.jsonl"))
    return {
        "name": "served",
        "base": str(root / "base"),
        "data": data.ExampleConfig(
            sources=(source,), template="plain", max_length=40, validation_share=0.5
        ),
        "peft": METHODS[method],
        "batch_size": 8,
        "sequence_length": 96,
        **others,
    }


def trained(recipe: Training, folder: pathlib.Path) -> runs.TrainedModel:
    task = runs.task_of(recipe, folder)
    task.prepare()
    return runs.TrainedModel(task, task.tokenizer(), drawn(task.spec), 1)


def scores(params, config, rows: int = 2) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(4, 260, (rows, 12), np.int32)

    @jax.jit
    def of(params):
        hidden, _ = models.apply(params, tokens, config)
        return models.logits(params, hidden, config)

    return np.asarray(of(params))


@pytest.mark.parametrize("method", ["lora", "ia3", pytest.param("dora", marks=pytest.mark.slow)])
def test_exported_weights_do_what_the_tuned_model_does(root, tmp_path, method) -> None:
    model = trained(Finetuning(**settings(root, method=method)), tmp_path / "run")
    runs.export(model, tmp_path / "out", dtype="float32")
    runs.export_tokenizer(model, tmp_path / "out")
    config, params = hf.load(tmp_path / "out")
    expected = scores(model.params, model.config)
    np.testing.assert_allclose(scores(params, config), expected, rtol=1e-4, atol=1e-4)
    assert data.load_tokenizer(tmp_path / "out").fingerprint == model.tokenizer.fingerprint
    again = runs.task_of(Finetuning(**settings(root) | {"base": str(tmp_path / "out")}), tmp_path)
    assert again.config == dataclasses.replace(model.config, dropout=again.config.dropout)


def test_examples_are_cut_to_what_a_row_holds(root, tmp_path, capsys) -> None:
    """Half of it for each answer of a pair, and for a prompt what the answer leaves."""
    word = (RewardSource("short", "llmjax.rl.rewards:matches_answer"),)
    answers = rl.RolloutConfig(8, 1, 8)
    for cls, examples, room, more in (
        (Finetuning, "sft", 32, {}),
        (Preferring, "pairs", 16, {}),
        (Reinforcing, "prompts", 24, {"rewards": word, "critic": "model", "rollouts": answers}),
    ):
        made = settings(root, examples, sequence_length=32, **more)
        made["data"] = dataclasses.replace(made["data"], max_length=1024)
        task = runs.task_of(cls(**made), tmp_path / examples)
        task.prepare()
        assert f"24 of 24 examples are cut to {room} tokens" in capsys.readouterr().out
        next(iter(task.batches("train" if cls is not Reinforcing else "validation")))


def test_an_exported_template_needs_nothing_but_messages(root, tmp_path) -> None:
    """Another program's Jinja, which knows no generation marks and none of our variables."""
    jinja2 = pytest.importorskip("jinja2")
    model = trained(Finetuning(**settings(root)), tmp_path / "run")
    runs.export_tokenizer(model, tmp_path / "out")
    source = (tmp_path / "out/chat_template.jinja").read_text()
    for mark in ("{%- generation %}", "{%- endgeneration %}"):
        source = source.replace(mark, "")
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    text = plain.render(messages=said, add_generation_prompt=True)
    assert text == model.task.template.render(said, add_generation_prompt=True)
    assert text.startswith("<s>### User\nHi")
    assert "Ho</s>" in text


def test_an_exported_model_ends_its_turns_where_it_learned_to(root, tmp_path) -> None:
    """generation_config.json comes with the base, and other programs read it before config.json."""
    hub_folders = pytest.importorskip("tests.data.hub_folders")
    made = hub_folders.byte_level()
    eos, turn_end = (made.token_to_id(name) for name in ("</s>", "<|im_end|>"))
    given = {"eos_token_id": eos, "temperature": 0.6}
    base = hub_folders.write(tmp_path / "base", made, generation=given)
    config = dataclasses.replace(MODEL, vocab_size=made.get_vocab_size())
    hf.save(base, config, drawn(models.spec(config)))
    recipe = settings(root) | {"base": str(base)}
    recipe["data"] = dataclasses.replace(recipe["data"], template="chatml")
    model = trained(Finetuning(**recipe), tmp_path / "run")
    runs.export_tokenizer(model, tmp_path / "out")
    found = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert found["eos_token_id"] == [turn_end, eos]
    assert found["temperature"] == 0.6


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stage", ["preference", "critic", "value head"])
def test_a_policy_is_exported_alone(root, tmp_path, stage, method) -> None:
    """Without its reference, its critic and its head of values."""
    if stage == "preference":
        recipe = Preferring(**settings(root, "pairs", method))
    else:
        recipe = Reinforcing(
            **settings(root, "prompts", method),
            rewards=(RewardSource("short", "llmjax.rl.rewards:matches_answer"),),
            critic="model" if stage == "critic" else "head",
            rollouts=rl.RolloutConfig(prompts=8, max_new_tokens=8),
        )
    model = trained(recipe, tmp_path / "run")
    policy = model.params["policy"] if stage == "critic" else model.params
    names = models.spec(MODEL)
    expected = scores({name: policy[name] for name in names}, model.config)
    runs.export(model, tmp_path / "out", dtype="float32")
    config, params = hf.load(tmp_path / "out")
    assert set(params) == set(names)
    np.testing.assert_allclose(scores(params, config), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["reward", "classification"])
def test_heads_of_sequences_are_those_of_transformers(root, tmp_path, kind) -> None:
    given = settings(root, "pairs", "lora")
    recipe: Training = RewardModelling(**given)
    if kind == "classification":
        labels = dataclasses.replace(given["data"], labels=("bad", "so so", "good"))
        recipe = Finetuning(**given | {"data": labels}, objective="classification")
    task = runs.task_of(recipe, tmp_path)
    model = runs.TrainedModel(task, ByteTokenizer(), drawn(task.spec), 1)
    runs.export(model, tmp_path / "out", dtype="float32")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["architectures"] == ["LlamaForSequenceClassification"]
    if kind == "classification":
        assert written["id2label"] == {"0": "bad", "1": "so so", "2": "good"}
    config, params = hf.load(tmp_path / "out")
    assert config.head.kind == kind
    expected = scores(model.params, model.config)
    np.testing.assert_allclose(scores(params, config), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix"])
def test_an_adapter_in_files_of_peft(root, tmp_path, method) -> None:
    model = trained(Finetuning(**settings(root, method=method)), tmp_path / "run")
    runs.export_adapter(model, tmp_path / "out", dtype="float32")
    config, base = hf.load(root / "base")
    if method == "prefix":
        _, added = peft.prefix_files.load(tmp_path / "out", models.spec(config), config)
    else:
        _, added = peft.files.load(tmp_path / "out", models.spec(config))
    merged = peft.attach(base, added)
    expected = scores(replaced(model, base), model.config)
    np.testing.assert_allclose(scores(merged, config), expected, rtol=1e-4, atol=1e-4)
    written = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str((root / "base").resolve())
    with pytest.raises(flags.FlagError, match="already"):
        runs.export_adapter(model, tmp_path / "out", dtype="float32")


def replaced(model: runs.TrainedModel, base):
    """What was drawn as added, over the base's own weights."""
    return peft.attach(base, peft.extract(model.params, model.task.model_spec))


def test_what_cannot_be_exported_says_why(root, tmp_path) -> None:
    def model(method: str) -> runs.TrainedModel:
        task = runs.task_of(Finetuning(**settings(root, method=method)), tmp_path)
        return runs.TrainedModel(task, ByteTokenizer(), drawn(task.spec), 1)

    with pytest.raises(flags.FlagError, match="with --adapter"):
        runs.export(model("prefix"), tmp_path / "out", dtype="float32")
    with pytest.raises(flags.FlagError, match="read the run itself"):
        runs.export(model("adapter"), tmp_path / "out", dtype="float32")
    with pytest.raises(flags.FlagError, match="--adapter"):
        runs.export_adapter(model("adapter"), tmp_path / "out", dtype="float32")
    with pytest.raises(flags.FlagError, match="trained the model itself"):
        runs.export_adapter(model("full"), tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()


def test_a_tuned_model_is_spoken_to_through_its_template(root, tmp_path, monkeypatch, capsys):
    """By messages, of which the oldest turns are forgotten; greedy, so two ways must agree."""
    model = trained(Finetuning(**settings(root, method="lora")), tmp_path / "run")
    template = model.task.template
    greedy = sampling.SamplerConfig(temperature=0.0)
    writer = writing.Writer(model, writing.Settings(4, greedy), template)
    said = [{"role": "user", "content": "Word 1?"}]
    tokens, _ = template.encode(said, add_generation_prompt=True)
    assert writer.encode(writer.opened("Word 1?")) == tokens.tolist()
    written = sampling.generate(
        peft.merge(model.params), [tokens.tolist()], model.config, jax.random.key(9),
        max_new_tokens=4, sampler=greedy, stop_tokens=template.stop_ids,
    )  # fmt: skip
    expected = model.tokenizer.decode(written.tokens[0, : written.lengths[0]].tolist())
    (found,) = writer.complete([said])
    assert found["completion"] == expected
    lines = iter(["Word 1?", "Word 2?", "Word 3?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    seen = []
    monkeypatch.setattr(writer, "stream", lambda p, n: seen.append(list(p)) or iter(["yes"]))
    writing.chat(writer)
    contents = [[turn["content"] for turn in turns] for turns in seen]
    # 96 places hold two turns of the user, with 4 tokens to write, and not three.
    assert contents == [["Word 1?"], ["Word 1?", "yes", "Word 2?"], ["Word 2?", "yes", "Word 3?"]]
    assert capsys.readouterr().out.count("yes") == 3
    plain = writing.Writer(model, writing.Settings(4, greedy))
    assert plain.encode(plain.opened("Word 1?")) == [1, *model.tokenizer.encode("Word 1?")]


def test_prompts_with_messages_are_for_templates(tmp_path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{"prompt": "Ho"}\n')
    assert len(writing.read_prompts(str(path), messages=True)) == 2
    lines = path.with_name("lines.jsonl")
    lines.write_text('{"prompt": "one\u2028two\x85three"}\r\n\n', "utf-8", newline="")
    assert writing.read_prompts(str(lines)) == [{"prompt": "one\u2028two\x85three"}]
    with pytest.raises(flags.FlagError, match=r":1: not an object with a text \"prompt\"$"):
        writing.read_prompts(str(path))


def test_a_reward_model_is_reported_on(root, tmp_path) -> None:
    model = trained(RewardModelling(**settings(root, "pairs", "lora")), tmp_path)
    found = runs.evaluate_model(model, tmp_path / "data")
    for keeps in (False, True):
        model.task.keeps = keeps  # not on other data than the run's
        report = runs.report_on(model, tmp_path / "data")
        assert (tmp_path / "reward_report.json").exists() == keeps
    assert isinstance(report, evaluation.RewardReport)
    assert report.accuracy == pytest.approx(found["validation_accuracy"])
    assert report.longer_share == 1.0  # of these examples the better answer is the longer one
    kept = json.loads((tmp_path / "reward_report.json").read_text())
    assert kept["accuracy"] == report.accuracy
    assert kept["accuracy_shorter"] is None
    assert sum(kept["share"]) == pytest.approx(1)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "validation_loss": 1.0}\n')
    page = write_report(tmp_path).read_text()
    assert "Calibration error" in page
    assert (tmp_path / "plots/calibration.png").exists()


def test_the_reward_of_several_models_is_their_mean(root) -> None:
    config = models.with_head(MODEL, "reward")
    several = [drawn(models.spec(config)), specs.init(jax.random.key(1), models.spec(config))]
    made = {"batch_size": 8, "length": 16}
    tokens = np.arange(4, 9, dtype=np.int32)
    samples = [
        rl.Sample(rl.Prompt(tokens, ""), tokens + n, "", np.zeros(5), True) for n in range(3)
    ]
    alone = [rl.ModelReward([params], config, **made)(samples) for params in several]
    both = rl.ModelReward(several, config, **made)
    np.testing.assert_array_equal(both.each(samples), alone)
    np.testing.assert_allclose(both(samples), np.mean(alone, axis=0), rtol=1e-6)


def test_folds_are_summed_up_by_their_best_evaluations(root, tmp_path, monkeypatch) -> None:
    seen = []

    def run(recipe, folder, options) -> None:
        seen.append(recipe.data)
        folder.mkdir(parents=True)
        fold = recipe.data.fold
        records = [{"step": 1, "loss": 9.0}, *(
            {"step": step, "validation_loss": 2.0 + fold + step, "perplexity": 1.0 * step, "n": 7}
            for step in (3, 2, 4)
        )]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    monkeypatch.setattr(training, "run", run)
    recipe = Finetuning(**settings(root))
    options = training.Options()
    found = [folds.run_fold(recipe, tmp_path, 3, i, options) for i in range(3)]
    assert found == [{"validation_loss": 4.0 + fold, "perplexity": 2.0} for fold in range(3)]
    assert [(d.folds, d.fold, d.directory) for d in seen] == [(3, i, "") for i in range(3)]
    said = folds.summary(recipe, found)
    of_loss = said["metrics"]["validation_loss"]
    assert (of_loss["mean"], of_loss["deviation"]) == (5.0, 1.0)
    # t(0.975, 2) √(1/3 + 1/2), with n_test/n_train = 1/2.
    assert of_loss["high"] - 5.0 == pytest.approx(4.302653 * np.sqrt(5 / 6), rel=1e-6)
    assert said["recipe"] == fields.to_json(recipe)
    json.dumps(said)
    given = dataclasses.replace(recipe.data, directory="somewhere")
    with pytest.raises(flags.FlagError, match="prepares its own data"):
        folds.fold_recipe(dataclasses.replace(recipe, data=given), 3, 0)


QUICK = OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_steps=0, decays=())


@pytest.mark.slow
def test_every_fold_is_held_out_once_and_a_fold_that_is_done_stays(root, tmp_path) -> None:
    given = settings(root, "pairs", optimizer=QUICK, steps=3)
    recipe, options = RewardModelling(**given), training.Options()
    first = [folds.run_fold(recipe, tmp_path, 2, i, options) for i in range(2)]
    assert first == [folds.run_fold(recipe, tmp_path, 2, i, options) for i in range(2)]
    held_out = []
    for fold in range(2):
        model = runs.load(tmp_path / "folds" / str(fold))
        rows = next(iter(runs.held_out(model, tmp_path / f"folds/{fold}/data", 24)))
        there = (rows["segment_ids"] > 0).any(axis=1)
        held_out.append({row.tobytes() for row in rows["tokens"][there]})
    assert not held_out[0] & held_out[1]
    assert len(held_out[0] | held_out[1]) == len(WORDS)


@pytest.mark.slow
def test_a_policy_learns_from_an_ensemble(root, tmp_path) -> None:
    for seed in range(2):
        given = settings(root, "pairs", optimizer=QUICK, steps=3, seed=seed)
        training.run(RewardModelling(**given), tmp_path / f"reward_{seed}")
    recipe = Reinforcing(
        **settings(root, "prompts", optimizer=QUICK, steps=2, evaluation_prompts=4),
        rewards=(RewardSource("models", str(tmp_path / "reward_*")),),
        critic="head",
        rollouts=rl.RolloutConfig(prompts=8, max_new_tokens=4),
        learning=rl.LearningConfig("gae", epochs=1),
        policy=objectives.PolicyConfig(),
    )
    training.run(recipe, tmp_path / "ppo")
    records = [json.loads(x) for x in (tmp_path / "ppo/metrics.jsonl").read_text().splitlines()]
    found = [r["validation_disagreement/models"] for r in records if "validation_reward" in r]
    assert found
    assert all(value > 0 for value in found)
    nothing = dataclasses.replace(recipe, rewards=(RewardSource("models", "no/such_*"),))
    with pytest.raises(flags.FlagError, match="no folder matches"):
        _ = runs.task_of(nothing, tmp_path / "ppo").mixture
