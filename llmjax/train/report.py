"""`report.html`: a self-contained page about a run.

The page is made from the run folder (config.json, metrics.jsonl, samples.jsonl, confusion.json
for classifiers and reward_report.json for reward models). It is a single file with styles and
charts as SVG, without scripts, and with a policy that forbids all requests.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmjax.pages import charts, drawing, page
from llmjax.train import plots
from llmjax.train.early_stopping import EarlyStoppingConfig
from llmjax.train.metrics import Record, read_jsonl

REWARD_FILE = "reward_report.json"

_SHOWN_SAMPLES = 6

# Metrics of which every evaluation has one, and their titles.
_EVALUATED = {
    "validation_loss": "Validation loss",
    "validation_reward": "Reward on held-out prompts",
    "validation_gold": "Gold reward",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a run folder.

    Attributes:
        name: the configuration's name, or the folder's.
        config: the configuration, without the versions.
        versions: versions of packages, and the machine.
        training: records of training steps, in order.
        evaluations: records of evaluations, in order.
        samples: dicts with step, prompt and continuation, in order.
        rollouts: records of iterations of reinforcement learning, in order.
        alarms: records of its guards' alarms.
        comparison: bits per byte on the held-out text for the model and its baselines; empty
            without comparison.json.
        confusion: the labels' "names" and the confusion matrix "counts"; empty without
            confusion.json.
        reward: fields of `evaluation.RewardReport`; empty without reward_report.json.
    """

    name: str
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    training: Sequence[Record]
    evaluations: Sequence[Record]
    samples: Sequence[Record]
    rollouts: Sequence[Record] = ()
    alarms: Sequence[Record] = ()
    comparison: Mapping[str, float] = dataclasses.field(default_factory=dict)
    confusion: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reward: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> Record:
        """The best evaluation according to early stopping."""
        watched = EarlyStoppingConfig(**self.config.get("early_stopping") or {})
        if not all(_is_number(r.get(watched.metric)) for r in self.evaluations):
            known = [n for n in _EVALUATED if all(n in r for r in self.evaluations)]
            watched = EarlyStoppingConfig(metric=known[0])
        best = watched.best_of(self.evaluations)
        assert best is not None, "every evaluation has the metric"
        return best


def write_report(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes `plots/*.png` and `report.html` to a run folder and returns the page's path.

    It can be called at any time during a run; the page leaves out files that do not exist yet.

    Args:
        run_dir: the run folder, with metrics.jsonl and optionally config.json and samples.jsonl.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
    """
    folder = pathlib.Path(run_dir)
    run = read_run(folder)
    found: list[charts.Chart] = [*plots.plots(run.training, run.evaluations, run.rollouts)]
    if run.confusion:
        counts, names = np.array(run.confusion["counts"]), tuple(run.confusion["names"])
        found.append(charts.Matrix("confusion", "Confusion matrix", counts, names))
    if run.reward:
        curve = (np.array(run.reward[name], float) for name in ("confidence", "right"))
        found.append(plots.calibration(*curve))
    (folder / "plots").mkdir(exist_ok=True)
    for chart in found:
        drawing.write(chart, folder / "plots" / f"{chart.name}.png")
    path = folder / "report.html"
    path.write_text(render(run, [drawing.svg(chart) for chart in found]), "utf-8")
    return path


def read_run(folder: pathlib.Path) -> Run:
    """Reads a run folder; raises FileNotFoundError without metrics.jsonl."""
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        raise FileNotFoundError(f"{metrics} does not exist: {folder} is not a run folder")
    records = read_jsonl(metrics)
    config = dict(_read_json(folder / "config.json"))
    versions = config.pop("versions", {})
    config.pop("begun", None)
    if isinstance(recipe := config.get("recipe"), Mapping):
        config = {**config, **recipe}
        del config["recipe"]
    samples = folder / "samples.jsonl"
    return Run(
        name=str(config.get("name") or folder.resolve().name),
        config=config,
        versions=versions if isinstance(versions, Mapping) else {"versions": versions},
        training=[record for record in records if "loss" in record],
        evaluations=[r for r in records if any(_is_number(r.get(name)) for name in _EVALUATED)],
        rollouts=[r for r in records if _is_number(r.get("answer_tokens"))],
        alarms=[record for record in records if "alarm" in record],
        samples=read_jsonl(samples) if samples.exists() else [],
        comparison=_read_json(folder / "comparison.json"),
        confusion=_read_json(folder / "confusion.json"),
        reward=_read_json(folder / REWARD_FILE),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _read_json(path: pathlib.Path) -> Mapping[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def render(run: Run, pictures: Sequence[str]) -> str:
    """The page's HTML; `pictures` are SVG elements."""
    device = run.versions.get("device_kind")
    place = f"{run.versions.get('device_count', 1)} × {device}" if device else ""
    sections = [
        page.header("Training report", run.name, place, _figures(run)),
        page.section("Curves", page.plots(pictures)),
        page.section("Alarms", _alarms(run.alarms)),
        page.section("Evaluations", _evaluations(run)),
        page.section("Comparison with other models", _comparison(run.comparison)),
        page.section("Reward model", _reward(run.reward)),
        page.section("Samples", _samples(run.samples)),
        page.section("Setup", _settings("Configuration", run.config), _environment(run.versions)),
    ]
    return page.render(run.name, sections, "Written by llmjax; the numbers are in metrics.jsonl.")


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """(label, figure, note) of the available headline numbers."""
    found = []
    if run.evaluations:
        best = run.best
        at = f"best, at step {best['step']:,}"
        for name, label in _EVALUATED.items():
            if name in best:
                found.append((label, f"{best[name]:.4f}", at))
        if "bits_per_byte" in best:
            found.append(("Bits per byte", f"{best['bits_per_byte']:.4f}", "on validation text"))
        if "perplexity" in best:
            found.append(("Perplexity", page.number(best["perplexity"]), "per validation token"))
        if "pseudo_perplexity" in best:
            figure = page.number(best["pseudo_perplexity"])
            found.append(("Pseudo-perplexity", figure, "per masked token"))
        if "discriminator_accuracy" in best:
            note = f"of tokens; {1 - best['replaced']:.2%} are originals"
            accuracy = f"{best['discriminator_accuracy']:.2%}"
            found.append(("Discriminator accuracy", accuracy, note))
        for name, label in (("accuracy", "Accuracy"), ("macro_f1", "Macro F1")):
            if name in best:
                found.append((label, f"{best[name]:.4f}", at))
    losses = [r["loss"] for r in run.training if isinstance(r["loss"], int | float)]
    if losses:
        recent = losses[-max(len(losses) // 50, 1) :]
        note = f"mean of the last {len(recent):,} records" if len(recent) > 1 else "last record"
        found.append(("Training loss", f"{statistics.fmean(recent):.4f}", note))
    if run.training:
        steps, tokens, seconds = _totals(run.training)
        found.append(("Steps", f"{steps:,}", f"{page.number(tokens)} tokens"))
        found.append(("Time in steps", page.duration(seconds), "without evaluations"))
        last = run.training[-1]
        if last.get("goodput"):
            note = "share of wall time in productive steps"
            found.append(("Goodput", f"{last['goodput']:.1%}", note))
        if skipped := last.get("skipped_total"):
            found.append(("Skipped steps", f"{skipped:,.0f}", "spikes or non-finite"))
    steady = run.training[1:] or run.training  # the first step compiles
    if speeds := [r["tokens_per_s"] for r in steady if r.get("tokens_per_s")]:
        found.append(("Tokens per second", page.number(statistics.median(speeds)), "median step"))
    if shares := [r["mfu"] for r in steady if r.get("mfu")]:
        found.append(("MFU", f"{statistics.median(shares):.1%}", "share of the peak rate"))
    return found


def _totals(training: Sequence[Record]) -> tuple[int, float, float]:
    """Last step, tokens and seconds; a record also counts for unrecorded steps before it."""
    tokens = seconds = 0.0
    previous = training[0]["step"] - 1
    for record in training:
        gap = record["step"] - previous
        tokens += gap * (record.get("inputs") or record.get("tokens") or 0.0)
        seconds += gap * (record.get("seconds") or 0.0)
        previous = record["step"]
    return previous, tokens, seconds


def _alarms(alarms: Sequence[Record]) -> str:
    """The alarms of guards, for runs that have them."""
    lines = (f"<li>Step {alarm['step']:,}: {page.text(alarm['alarm'])}</li>\n" for alarm in alarms)
    return f"<ul>\n{''.join(lines)}</ul>\n" if alarms else ""


def _evaluations(run: Run) -> str:
    evaluations = run.evaluations
    if not evaluations:
        return ""
    columns = {
        "validation_loss": ("Loss", ".4f"),
        "validation_accuracy": ("Accuracy on comparisons", ".4f"),
        "validation_reward": ("Reward", ".4f"),
        "validation_gold": ("Gold reward", ".4f"),
        "validation_answer_tokens": ("Tokens per answer", ",.1f"),
        "validation_repetition": ("Repetition", ".4f"),
        "perplexity": ("Perplexity", ",.2f"),
        "bits_per_byte": ("Bits per byte", ".4f"),
        "pseudo_perplexity": ("Pseudo-perplexity", ",.2f"),
        "generator_loss": ("Generator loss", ".4f"),
        "discriminator_loss": ("Discriminator loss", ".4f"),
        "discriminator_accuracy": ("Discriminator accuracy", ".4f"),
        "replaced": ("Replaced", ".4f"),
        "accuracy": ("Accuracy", ".4f"),
        "macro_f1": ("Macro F1", ".4f"),
        "matthews": ("Matthews", ".4f"),
        "exact_match": ("Exact match", ".4f"),
        "token_f1": ("Token F1", ".4f"),
    }
    columns = {name: column for name, column in columns.items() if name in evaluations[0]}
    best = run.best
    head = "".join(f"<th>{title}</th>" for title, _ in columns.values())
    rows = []
    for record in evaluations:
        tag = '<span class="tag">best</span>' if record is best else ""
        cells = "".join(f"<td>{page.cell(record.get(n), f)}</td>" for n, (_, f) in columns.items())
        kind = ' class="best"' if record is best else ""
        rows.append(f"<tr{kind}><td>{record['step']:,}{tag}</td>{cells}</tr>\n")
    return (
        f'<div class="card scroll"><table>\n<thead><tr><th>Step</th>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody></table></div>\n"
    )


def _comparison(compared: Mapping[str, float]) -> str:
    rows = [(page.text(name), page.cell(value, ".3f")) for name, value in compared.items()]
    return page.table(("Model", "Bits per byte on held-out text"), rows)


def _reward(report: Mapping[str, Any]) -> str:
    """The reliability of a reward model."""
    rows = {
        "Accuracy on comparisons": "accuracy",
        "Calibration error": "calibration_error",
        "Longer answer is better": "longer_share",
        "Longer answer is preferred": "longer_chosen",
        "Accuracy if the longer answer is better": "accuracy_longer",
        "Accuracy if the shorter answer is better": "accuracy_shorter",
        "Correlation of reward and length": "length_correlation",
        "Correlation within pairs": "length_correlation_within",
    }
    cells = "".join(
        f"<tr><td>{title}</td><td>{page.cell(report[name], '.4f')}</td></tr>\n"
        for title, name in rows.items()
        if name in report
    )
    return f'<div class="card scroll"><table>\n{cells}</table></div>\n' if cells else ""


def _samples(samples: Sequence[Record]) -> str:
    """The samples, newest first; older ones are collapsed."""
    cards = [
        f'<article class="sample card"><h3>step {page.cell(sample.get("step"), ",")}</h3>'
        f'<p><span class="prompt">{page.text(sample.get("prompt", ""))}</span>'
        f"{page.text(sample.get('continuation', ''))}</p></article>\n"
        for sample in reversed(samples)
    ]
    shown, folded = cards[:_SHOWN_SAMPLES], cards[_SHOWN_SAMPLES:]
    more = f"{len(folded)} earlier sample{'s' if len(folded) > 1 else ''}"
    return "".join(shown) + (page.details(more, "".join(folded)) if folded else "")


def _settings(title: str, config: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{page.text(name)}</td><td>{page.text(value)}</td></tr>\n"
        for name, value in _flat(config)
    )
    return page.details(title, f'<table class="settings">\n{rows}</table>') if rows else ""


def _environment(versions: Mapping[str, Any]) -> str:
    return _settings("Versions and machine", versions)


def _flat(config: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, value) of every leaf, named like the flags."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, config if isinstance(config, str) else json.dumps(config)
