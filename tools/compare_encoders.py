#!/usr/bin/env python3
"""Pretrains an encoder with masked tokens (MLM) and with replaced tokens (RTD), and compares them.

    mkdir -p lists/partial
    apt-get update -o Dir::State::lists=$PWD/lists -o Acquire::Languages=en \
        -o Acquire::GzipIndexes=false
    tools/compare_encoders.py prepare --lists=lists --data=debian.npz
    tools/compare_encoders.py run --data=debian.npz --out=results

The corpus is Debian's package descriptions, the labels are their sections (see
tools/encoders/corpus.py). Both objectives train the same encoder on the same rows with the same
compute, including that of RTD's generator, each with its best learning rate on the validation
split. After every doubling of the compute, the encoder is evaluated by a linear probe and by
fine-tuning on the training split, both on held-out packages. `run` needs neither network nor
tokenizer, so it can run on a separate accelerator machine; `report` redraws its results.json.

Writes results.json, results.md (table, verdicts) and charts of accuracy by compute (probe.svg,
fine_tuning.svg, and the same as .png) after every seed.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

TUNING_SEED = 1_000  # differs from the seeds of compared runs

# For two cores and two hours.
SMALL: dict[str, Any] = {
    "num_layers": 3,
    "embed_dim": 128,
    "length": 64,
    "batch_size": 64,
    "budget": 1e13,
    "checkpoints": 3,
    "epochs": 1,
}

# Just enough to check that everything works.
QUICK: dict[str, Any] = {
    "num_layers": 1,
    "embed_dim": 16,
    "num_heads": 4,
    "length": 16,
    "batch_size": 4,
    "budget": 2e8,
    "checkpoints": 3,
    "warmup": 2,
    "rates": (1e-3, 3e-3),
    "epochs": 1,
}


def compare(
    data: Any,
    settings: Any,
    seeds: int,
    say: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Makes all runs, and writes the report after both objectives of a seed."""
    from tools.encoders import corpus, judging, pretraining

    judge = judging.Judge(data, settings)
    baselines = {"commonest label": judge.majority(), "bag of tokens": judge.bag_of_tokens()}
    for name, score in baselines.items():
        say(f"{name}: {score.accuracy:.1%}, balanced {score.balanced:.1%}")
    runs = [pretraining.make(objective, data, settings) for objective in pretraining.OBJECTIVES]
    tried = {run.objective: tune(run, data, settings, judge, say) for run in runs}
    rates = {name: float(max(found, key=found.__getitem__)) for name, found in tried.items()}
    results: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "steps": {run.objective: run.steps for run in runs},
        "rates": rates,
        "tried": tried,
        "held_out": int(sum(data.splits == corpus.SPLITS.index("test"))),
        "baselines": {name: dataclasses.asdict(score) for name, score in baselines.items()},
        "records": [],
    }
    for seed in range(seeds):
        for run in runs:

            def visit(point, name=run.objective, seed=seed) -> None:
                record = judge_point(judge, point, name, seed)
                results["records"].append(record)
                say(
                    f"{name}, seed {seed}, {point.flops:.2e} FLOPs: loss {point.loss:.3f}, "
                    f"probe {record['probe']:.1%}, fine-tuning {record['fine_tuning']:.1%}"
                )

            at = run.checkpoints(settings)
            run.run(data, settings, seed, rates[run.objective], visit, at)
        keep(results)


def judge_point(judge: Any, point: Any, objective: str, seed: int) -> dict[str, Any]:
    """The record of a checkpoint."""
    probe, tuned = judge.probe(point.encoder), judge.fine_tune(point.encoder, seed)
    return {
        "objective": objective,
        "seed": seed,
        "flops": point.flops,
        "seconds": point.seconds,
        "loss": point.loss if point.flops else None,
        "probe": probe.accuracy,
        "probe_balanced": probe.balanced,
        "fine_tuning": tuned.accuracy,
        "fine_tuning_balanced": tuned.balanced,
    }


def tune(
    run: Any, data: Any, settings: Any, judge: Any, say: Callable[[str], None]
) -> dict[str, float]:
    """Accuracy of the probe on the validation split, by learning rate."""
    steps = max(1, round(settings.tuning_share * run.steps))
    found: dict[str, float] = {}
    for rate in settings.rates:

        def visit(point, rate=rate) -> None:
            found[str(rate)] = judge.probe(point.encoder, "validation").accuracy
            say(
                f"{run.objective}, learning rate {rate:g}: loss {point.loss:.3f}, "
                f"validation {found[str(rate)]:.1%}"
            )

        run.run(data, settings, TUNING_SEED, rate, visit, (steps,))
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _options(arguments)
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {text}", file=sys.stderr, flush=True)

    try:
        {"prepare": _prepare, "run": _run, "report": _report}[options.stage](options, say)
    except (OSError, ValueError) as error:
        sys.exit(f"compare_encoders: {error}")


def _prepare(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    from tools.encoders import corpus

    say(corpus.prepare(options.lists, options.data, options.vocab_size))


def _run(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    from tools.encoders import report
    from tools.encoders.data import Data
    from tools.encoders.pretraining import Settings

    changes: dict[str, Any] = dict(options.size)
    if options.budget:
        changes["budget"] = options.budget
    if options.learning_rates:
        changes["rates"] = tuple(options.learning_rates)
    settings = Settings(**changes)
    directory = pathlib.Path(options.out)
    data = Data.load(options.data)
    compare(data, settings, options.seeds, say, lambda found: report.write(found, directory))
    print((directory / "results.md").read_text())


def _report(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    from tools.encoders import report

    del say
    directory = pathlib.Path(options.out)
    results = json.loads((directory / "results.json").read_text())
    report.write(results, directory)
    print(report.markdown(results))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    prepare = stages.add_parser("prepare", help="tokenize text to one file")
    prepare.add_argument("--lists", required=True, help="folder with apt's index files")
    prepare.add_argument("--data", required=True, help="the .npz file to write")
    prepare.add_argument("--vocab_size", type=int, default=8192, help="(default: 8192)")
    run = stages.add_parser("run", help="pretrain, judge and report")
    run.add_argument("--data", required=True, help="the .npz file of `prepare`")
    run.add_argument("--out", required=True, help="folder for the results")
    run.add_argument("--seeds", type=int, default=3, help="seeds per objective (default: 3)")
    run.add_argument(
        "--budget", type=float, help="FLOPs of each pretraining (default: 2e15; small: 1e13)"
    )
    run.add_argument(
        "--learning_rates",
        type=float,
        nargs="+",
        metavar="RATE",
        help="learning rates to choose from, or one (default: 1e-3 3e-3 1e-2)",
    )
    sizes = run.add_mutually_exclusive_group()
    for name, size, text in (
        ("small", SMALL, "a size for two cores and two hours"),
        ("quick", QUICK, "a tiny model, to check that it works"),
    ):
        sizes.add_argument(
            f"--{name}", dest="size", action="store_const", const=size, default={}, help=text
        )
    report = stages.add_parser("report", help="write the table and the charts again")
    report.add_argument("--out", required=True, help="folder with results.json")
    options = parser.parse_args(arguments)
    if options.stage == "run" and options.seeds < 1:
        parser.error(f"--seeds={options.seeds}: give 1 or more")
    return options


if __name__ == "__main__":
    main()
