"""The whole tool on a tiny corpus, and its parts against what one computes by hand."""

import json
import pathlib

import jax
import numpy as np
import optax
import pytest

from llmjax import models
from tools import compare_encoders
from tools.encoders import corpus, judging, pretraining, report
from tools.encoders.data import Data

BOILERPLATE = "This package contains the program and nothing else that anybody would look for."
WORDS = {
    "games": "play the puzzle with coloured stones and beat all levels of the old castle",
    "sound": "record music from a microphone and mix tracks of audio with many effects",
    "python": "a module for the snake language that parses and prints nested structures",
}


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> pathlib.Path:
    """Index files as apt writes them: 90 sources, every third of which builds two packages."""
    folder = tmp_path_factory.mktemp("lists")
    packages, descriptions = [], []
    draws = np.random.default_rng(0)
    for number in range(90):
        section = list(WORDS)[number % 3]
        for name in (f"source{number}", f"source{number}-data")[: 1 + (number % 3 == 0)]:
            words = draws.permutation(WORDS[section].split())
            packages.append(
                f"Package: {name}\nSource: source{number} (1.0)\nSection: {section}\nSize: 1\n"
            )
            descriptions.append(
                f"Package: {name}\nDescription-md5: 0\nDescription-en: number {number} of {name}\n"
                f" {' '.join(words)}\n {number} times.\n .\n {BOILERPLATE}\n"
            )
    (folder / "mirror_dists_stable_main_binary-amd64_Packages").write_text("\n".join(packages))
    (folder / "mirror_dists_stable_main_i18n_Translation-en").write_text("\n".join(descriptions))
    return folder


@pytest.fixture(scope="module")
def prepared(lists, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    arguments = [f"--lists={lists}", f"--data={path}", "--vocab_size=400"]
    compare_encoders.main(["prepare", *arguments])
    return path


def test_sources_do_not_straddle_and_boilerplate_goes(lists) -> None:
    packages = corpus.read(lists)
    assert len(packages) == 120
    assert {package.source for package in packages} == {f"source{n}" for n in range(90)}
    texts = corpus.choose(packages)
    assert "\n".join(texts.unlabelled).count(BOILERPLATE) == 1
    assert len(texts.labelled) == 60
    assert set(texts.sections) == {"games", "sound"}
    assert not any(BOILERPLATE in text for text in texts.labelled)
    # Those of 30 sources in two packages: the longer description is that of "-data".
    assert sum("-data" in text for text in texts.labelled) == 30
    of_source = {package.source: package.split for package in packages}
    held_out = [source for source, split in of_source.items() if split != "train"]
    assert 10 < len(held_out) < 45
    for source in held_out:
        assert not any(f" of {source}\n" in text for text in texts.unlabelled)


def test_index_files_that_are_not_there_are_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"has no file \*Packages"):
        compare_encoders.main(["prepare", f"--lists={tmp_path}", f"--data={tmp_path}/x.npz"])


def test_rows_hold_every_document_once_an_epoch(prepared) -> None:
    data = Data.load(prepared)
    size = 4 * 16
    epoch = len(data.tokens) // size
    batches = data.batches(3, 4, 16)
    seen = [next(batches) for _ in range(epoch)]
    tokens = np.concatenate([batch["tokens"].ravel() for batch in seen])
    whole = np.bincount(data.tokens, minlength=data.vocab_size)
    difference = whole - np.bincount(tokens, minlength=data.vocab_size)
    assert (difference >= 0).all()
    assert difference.sum() == len(data.tokens) - epoch * size < size
    for batch in seen:
        starts = batch["positions"] == 0
        np.testing.assert_array_equal(np.cumsum(starts, axis=1), batch["segment_ids"])
        # Documents begin with bos (1), so a segment starts there or at the start of a row.
        np.testing.assert_array_equal(starts[:, 1:], batch["tokens"][:, 1:] == 1)


def test_both_objectives_cost_the_same_and_give_the_same_encoder(prepared) -> None:
    data = Data.load(prepared)
    settings = pretraining.Settings(**compare_encoders.QUICK)
    shapes = []
    for objective in pretraining.OBJECTIVES:
        run = pretraining.make(objective, data, settings)
        assert run.steps * run.flops_per_step == pytest.approx(settings.budget, rel=0.05)
        encoder = run.encoder(jax.eval_shape(run.start, jax.random.key(0), 1.0).params)
        shapes.append(jax.tree.map(lambda leaf: leaf.shape, encoder))
    assert shapes[0] == shapes[1]
    spec = models.spec(pretraining.encoder_config(data, settings))
    assert set(shapes[0]) == set(spec) - {"head"}


def test_the_learning_rate_scales_every_update(prepared) -> None:
    """In the state, so that one compiled step serves all rates."""
    data = Data.load(prepared)
    run = pretraining.make("mlm", data, pretraining.Settings(**compare_encoders.QUICK))
    params = {"weight": np.ones(3, np.float32)}
    chain = optax.chain(optax.sgd(1.0), pretraining._scale_by_rate())
    for rate in (1e-3, 2e-3):
        held = jax.eval_shape(run.start, jax.random.key(0), rate).opt_state[1]
        state = (chain.init(params)[0], pretraining.RateState(np.float32(rate)))
        assert jax.tree.structure(held) == jax.tree.structure(state[1])
        updates, _ = chain.update({"weight": np.full(3, 5.0, np.float32)}, state, params)
        np.testing.assert_allclose(updates["weight"], -5 * rate, rtol=1e-6)


def test_the_probe_finds_a_linear_rule() -> None:
    draws = np.random.default_rng(0)
    features = draws.normal(size=(300, 5)).astype(np.float32)
    labels = (features @ draws.normal(size=(5, 3))).argmax(axis=1).astype(np.int32)
    weights, biases = judging._regressions(features[:200], labels[:200], 3)
    guesses = (features[200:] @ np.asarray(weights[0]) + np.asarray(biases[0])).argmax(axis=1)
    assert judging.Score.of(guesses, labels[200:]).accuracy > 0.9


def test_scores_by_hand() -> None:
    score = judging.Score.of(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    assert (score.accuracy, score.balanced) == (0.75, 0.75)
    score = judging.Score.of(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    assert (score.accuracy, score.balanced) == (0.75, 0.5)


def test_the_ratio_is_that_of_shifted_curves() -> None:
    """An objective that is as good with a third of the compute has the ratio 3."""
    flops = 1e12 * 2.0 ** np.arange(8)

    def accuracy(compute):
        return 0.2 + 0.05 * np.log(compute / 1e12)

    wins = report.Curves(flops, np.stack([accuracy(3 * flops)] * 3))
    loses = report.Curves(flops, np.stack([accuracy(flops)] * 3))
    found = report.ratio(loses, wins)
    assert found.mean == pytest.approx(3)
    assert found.low == pytest.approx(found.high)
    assert "RTD wins" in report.verdict("x", found)
    assert report.ratio(wins, loses).mean == pytest.approx(1 / 3)
    assert "MLM wins" in report.verdict("x", report.ratio(wins, loses))
    one = [report.Curves(flops, curve.accuracy[:1]) for curve in (loses, wins)]
    assert "no clear winner" in report.verdict("x", report.ratio(*one))
    noisy = report.Curves(flops, np.stack([accuracy(flops * f) for f in (0.5, 1, 2)]))
    assert "no clear winner" in report.verdict("x", report.ratio(noisy, loses))


def test_compute_to_reach_what_was_not_reached_is_infinite() -> None:
    flops, accuracy = np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.3, 0.2])
    assert report.compute_to_reach(flops, accuracy, 0.4) == float("inf")
    assert report.compute_to_reach(flops, accuracy, 0.05) == 1
    assert report.compute_to_reach(flops, accuracy, 0.2) == pytest.approx(2**0.5)


@pytest.mark.slow
def test_the_whole_tool(prepared, tmp_path, capsys) -> None:
    arguments = ["run", f"--data={prepared}", f"--out={tmp_path}", "--seeds=2", "--quick"]
    compare_encoders.main(arguments)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["records"]) == 2 * 2 * 4
    assert set(results["tried"]["rtd"]) == {"0.001", "0.003"}
    assert all(0 <= record["probe"] <= 1 for record in results["records"])
    untrained = [r for r in results["records"] if r["flops"] == 0]
    assert {r["seed"] for r in untrained} == {0, 1}
    for name in ("linear probe:", "fine-tuning:", "bag of tokens"):
        assert name in printed
    assert all((tmp_path / f"{name}.svg").read_text().count("RTD") == 1 for name in report.PLOTTED)
    assert (tmp_path / "results.md").read_text() in printed
    compare_encoders.main(["report", f"--out={tmp_path}"])
    assert capsys.readouterr().out == printed


def test_bad_options_are_answered(capsys) -> None:
    with pytest.raises(SystemExit):
        compare_encoders.main(["run", "--data=x", "--out=y", "--seeds=0"])
    assert "give 1 or more" in capsys.readouterr().err
