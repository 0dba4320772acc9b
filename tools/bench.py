#!/usr/bin/env python3
"""Benchmarks workloads (training step, evaluation, decoding, data), optionally against peers.

    tools/bench.py                                     W1 and W2, as a table
    tools/bench.py --workload=W1 --json                one JSON object a line
    tools/bench.py --workload=W1,W2 --against=torch,torch-compile
    tools/bench.py --workload=W2-decode --against=torch
    tools/bench.py --workload=MLM,RTD --against=torch    masked and replaced tokens
    tools/bench.py --workload=W2-lora --against=torch,torch-compile    low-rank corrections: peft
    tools/bench.py --workload=GRPO,PPO --against=torch   iterations of rollouts and a step: TRL
    tools/bench.py --workload=GRPO,PPO,W2-lora,W2-decode --against=tunix    Tunix, on jax as well
    tools/bench.py --workload=G1,G2 --against=torch      on a GPU: GPT-2 small and BERT base
    tools/bench.py --workload=W1,data                  how many W1 steps the loader could feed
    tools/bench.py --kernels                           attention and cross entropy on a CPU

Every engine runs in its own process; the processes take turns, so that compared figures are from
the same minutes. Nothing is cached between runs. Workloads are defined in
tools/benchmark/workloads.py, the fields of a line by `Result` in tools/benchmark/session.py. JAX
uses its default device, and peers use a GPU if torch finds one; on GPUs in bfloat16.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys

import rich.console
import rich.table

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tools.benchmark import kernel_cases, kernels
from tools.benchmark.session import Result, measure
from tools.benchmark.worker import ENGINES
from tools.benchmark.workloads import WORKLOADS, Workload

# Kinds of workloads without some peers: none has our data loading, and TRL does not compile.
_LACKING = {"data": ENGINES, "grpo": ("torch-compile",), "ppo": ("torch-compile",)}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _options(arguments)
    if options.kernels:
        kernels.show(kernel_cases.cpu(), options.rounds, as_json=options.json)
        return
    stderr = rich.console.Console(stderr=True, highlight=False)
    results: list[Result] = []
    for name in options.workload:
        peers = [peer for peer in options.against if _has(peer, WORKLOADS[name])]
        try:
            measured = measure(
                WORKLOADS[name],
                ["llmjax", *peers],
                rounds=options.rounds,
                threads=options.threads,
                say=stderr.print,
            )
        except RuntimeError as error:
            sys.exit(f"bench: {error}")
        results += measured
        if options.json:
            for result in measured:
                print(json.dumps(dataclasses.asdict(result)), flush=True)
    if not options.json:
        show(results)


def show(results: list[Result], console: rich.console.Console | None = None) -> None:
    """Prints the table; figures about a peer are in its row."""
    console = console or rich.console.Console()
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for column in ("workload", "engine"):
        table.add_column(column, no_wrap=True)
    for column in (
        "step s", "tokens/s", "first s", "peak MB", "cores", "matmul", "speed", "mem",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        ours = next(r for r in results if r.workload == result.workload and r.engine == "llmjax")
        table.add_row(
            result.workload,
            result.engine,
            f"{result.step_s:.3f}",
            f"{result.tokens_per_s:,.0f}",
            f"{result.first_step_s:.1f}",
            f"{result.peak_device_memory_mb or result.peak_memory_mb:,.0f}",
            f"{result.cores:.1f}",
            _optional(result.matmul_share),
            _optional(ours.speedup.get(result.engine)),
            _optional(ours.memory_share.get(result.engine)),
        )
    console.print(table)
    for line in _notes(results):
        console.print(line, highlight=False)


def _optional(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}"


def _notes(results: list[Result]) -> list[str]:
    """Notes on the columns, on what the figures depend on, and on the loader's rate."""
    rate = max(result.matmul_gflops for result in results)
    notes = ["first: from the start of the process to the end of the first step, nothing cached"]
    notes.append(f"matmul: share of {rate:.0f} GFLOP/s, the best rate of a product in the run")
    if any(result.peak_device_memory_mb for result in results):
        notes.append("peak MB: of the accelerator's memory")
    if any(result.engine != "llmjax" for result in results):
        notes.append("speed, mem: llmjax over this peer (above 1 is faster, below 1 is smaller)")
    loads = ", ".join(sorted({f"{r.load_average:.1f}" for r in results}))
    notes.append(
        f"cores: busy cores of {results[0].threads} in a step; load average before: {loads}"
    )
    for engine, result in {result.engine: result for result in results}.items():
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        notes.append(f"{engine}: {versions}; {result.device}")
    rates = {r.workload: r.tokens_per_s for r in results if r.engine == "llmjax"}
    if {"W1", "data"} <= set(rates):
        notes.append(f"the loader feeds {rates['data'] / rates['W1']:.0f} × what a W1 step eats")
    return notes


def _options(arguments: list[str] | None) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(WORKLOADS)
    parser.add_argument(
        "--workload",
        type=_names("workload", {name: w.size == "cpu" for name, w in WORKLOADS.items()}),
        default="W1,W2",
        metavar="NAME,...",
        help=f"{known}, or all (those for a CPU; default: W1,W2)",
    )
    parser.add_argument(
        "--against",
        type=_names("peer", dict.fromkeys(ENGINES[1:], True)),
        default=[],
        metavar="PEER,...",
        help="torch (transformers, eager) and torch-compile need the extra `parity`, and for GRPO "
        "and PPO trl 1.12, the last with PPO, and requests; tunix (decoders only) needs "
        "google-tunix",
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed turns (default: 7)")
    parser.add_argument(
        "--threads", type=int, default=cores, help=f"cores for each engine (default: {cores})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="benchmark operations in one process, against XLA with scores and logits in memory",
    )
    options = parser.parse_args(arguments)
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)}: give 1 or more")
    for module, package in _needed(options).items():
        if importlib.util.find_spec(module) is None:
            parser.error(f"--against needs {module}: pip install {package}")
    return options


def _has(peer: str, workload: Workload) -> bool:
    """Whether a peer has the workload; Tunix has only decoders."""
    if peer == "tunix" and workload.settings.model.family != "llama":
        return False
    return peer not in _LACKING.get(workload.kind, ())


def _needed(options: argparse.Namespace) -> dict[str, str]:
    """What pip is to install for the modules that the peers need."""
    needed = {"tunix": "google-tunix"} if "tunix" in options.against else {}
    if {"torch", "torch-compile"} & set(options.against):
        needed |= dict.fromkeys(("torch", "transformers"), "-e '.[parity]'")
        if any(WORKLOADS[name].kind in ("grpo", "ppo") for name in options.workload):
            needed["trl"] = "'trl==1.12.*' requests"
    return needed


def _names(what: str, known: dict[str, bool]):
    """An argparse type: comma-separated names out of the known ones, or all that are True there."""

    def parse(text: str) -> list[str]:
        if text == "all":
            return [name for name, usual in known.items() if usual]
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"no {what} {name!r}: there are {', '.join(known)}"
                )
        return names

    return parse


if __name__ == "__main__":
    main()
