"""The report is one file that has every artefact of the run and asks nobody for anything."""

import json

import numpy as np
import pytest

from llmjax.evaluation import Confusion
from llmjax.train import plots
from llmjax.train.report import write_report
from tests.pages import Page, check_charts, check_self_contained

NASTY = "<script>alert('x')</script> & \"quotes\" https://example.org/a.js"


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "my-run"
    folder.mkdir()
    records = []
    for step in range(1, 1001):
        record = {"step": step, "loss": 3.0 + 4.0 / step, "tokens": 512.0, "seconds": 0.25}
        record |= {"tokens_per_s": 2048.0, "learning_rate": 1e-3, "grad_norm": 1.0, "mfu": 0.5}
        record |= {"goodput": 0.8125, "skipped_total": step // 250}
        records.append(record)
        if step % 250 == 0:
            loss = {250: 3.9, 500: 3.2, 750: 3.1, 1000: 3.15}[step]
            records.append({"step": step, "validation_loss": loss, "perplexity": np.exp(loss)})
    write_lines(folder / "metrics.jsonl", records)
    samples = [{"step": s, "prompt": NASTY, "continuation": f"text {s}"} for s in range(10)]
    write_lines(folder / "samples.jsonl", samples)
    config = {"recipe": {"name": NASTY, "model": {"num_layers": 7}}, "versions": {"jax": "0.99"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def text(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text("utf-8")


def test_every_artefact_is_there(run_dir, text):
    page = Page(text)
    assert page.tags.count("svg") == 4
    for name in ("loss", "learning_rate", "throughput", "grad_norm"):
        content = (run_dir / "plots" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
    assert NASTY in page.text  # as text, so escaped
    assert all(f"text {step}" in page.text for step in range(10))
    for part in ("3.1000", "at step 750", "model.num_layers", "7", "0.99", "4 min 10 s", "50.0%"):
        assert part in page.text
    assert "81.2%" in page.text
    assert "Skipped steps4spikes" in page.text
    assert text.count('class="best"') == 1


def test_it_is_self_contained(text):
    check_self_contained(text)


def test_charts_follow_the_page_and_ids_are_unique(text):
    check_charts(text)


def test_a_young_run_has_a_page_too(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    assert tmp_path.name in Page(write_report(tmp_path).read_text()).text
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": None, "tokens_per_s": 1.0}])
    assert "Curves" not in Page(write_report(tmp_path).read_text()).text
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0, "grad_norm": 0.0}])
    assert "2.0000" in Page(write_report(tmp_path).read_text()).text


def test_a_long_run_is_thinned_and_keeps_its_shape():
    records = [{"step": step, "loss": step / 1000} for step in range(1, 50_001)]
    (plot,) = plots.plots(records, [])
    for curve in plot.curves[:2]:
        assert curve.x.size == 800
        np.testing.assert_allclose(curve.y, curve.x / 1000, atol=0.3)


def test_a_classifiers_page_has_its_confusion_and_the_best_by_its_metric(tmp_path):
    names = ("$5 & <b>up</b>", "down", "a name that is too long for an axis")
    Confusion(np.array([[5, 0, 1], [2, 4321, 0], [0, 0, 0]]), names).save(
        tmp_path / "confusion.json"
    )
    watched = {"early_stopping": {"metric": "macro_f1", "mode": "auto"}}
    (tmp_path / "config.json").write_text(json.dumps({"recipe": watched}))
    figures = {10: (0.5, 0.71), 20: (0.4, 0.83), 30: (0.3, 0.79)}
    write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": step, "validation_loss": loss, "macro_f1": f1}
            for step, (loss, f1) in figures.items()
        ],
    )
    text = write_report(tmp_path).read_text("utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 2
    for part in ("$5 & <b>up</b>", "a name that is too …", "4,321", "83%", "0.8300"):
        assert part in page.text
    assert page.text.count("best, at step 20") == 2
    check_charts(text)
    assert (tmp_path / "plots" / "confusion.png").read_bytes().startswith(b"\x89PNG")
