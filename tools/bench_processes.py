#!/usr/bin/env python3
"""Compares a two-process run on CPUs with a single process, each process pinned to one core.

    tools/bench_processes.py                          # some three minutes on two idle cores
    tools/bench_processes.py -- --mesh.zero=1         # flags of the run behind --

The number of rows per process is the same in all runs. The first core alone, the second alone, two
unrelated runs at once, and one run of both processes take turns; each turn is scored by its median
step, excluding the first steps. The unrelated runs show what the cores take from each other without
any communication.
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
LENGTH = 256  # tokens of a row
FLAGS = (
    "--recipe=tiny",
    "--corpus=python_topics",
    "--data.tokenizer.kind=bytes",
    "--model.vocab_size=260",
    "--model.num_layers=4",
    "--model.embed_dim=256",
    "--model.num_heads=4",
    f"--sequence_length={LENGTH}",
    "--log_every=1",
    "--checkpoint_every=1000",
    "--evaluate_every=1000",
    "--sample_tokens=0",
    "--optimizer.schedule=constant",
    "--optimizer.warmup_steps=0",
)
FIRST = 4  # untimed steps: compilation and warm-up


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8, help="rows per process (default: 8)")
    parser.add_argument("--steps", type=int, default=24, help="steps per turn (default: 24)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each kind (default: 3)")
    parser.add_argument("flags", nargs="*", help="flags of experiments.pretrain, after --")
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("bench_processes: this needs two cores")
    first, second = cores[:2]
    kinds = {
        "first core": [[first]],
        "second core": [[second]],
        "unrelated": [[first], [second]],
        "both": [[first, second]],
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.turns):
            for kind, runs in kinds.items():
                rates[kind].append(_rate(pathlib.Path(folder), runs, options))
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    for kind, median in medians.items():
        print(f"{kind}: {median:,.0f} tokens/s per process")
    for kind in ("unrelated", "both"):
        shares = [medians[kind] / medians[alone] for alone in ("first core", "second core")]
        print(f"{kind}, relative to one alone: {shares[0]:.2f} and {shares[1]:.2f}")


def _rate(folder: pathlib.Path, runs: list[list[int]], options: argparse.Namespace) -> float:
    """Tokens/s of each process by the median step of runs at once, one process per core."""
    folders = [folder / f"run{index}" for index in range(len(runs))]
    running = []
    for run_dir, cores in zip(folders, runs, strict=True):
        shutil.rmtree(run_dir, ignore_errors=True)
        running += _start(run_dir, cores, options)
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit("bench_processes: the run failed; its messages are above")
    return statistics.mean(options.rows * LENGTH / _step(run_dir) for run_dir in folders)


def _start(
    run_dir: pathlib.Path, cores: list[int], options: argparse.Namespace
) -> list[subprocess.Popen[bytes]]:
    """Starts the processes of one run, each on its core."""
    flags = [
        *FLAGS,
        f"--run_dir={run_dir}",
        f"--data.directory={run_dir.parent / 'data'}",
        f"--batch_size={options.rows * len(cores)}",
        f"--steps={options.steps}",
        *options.flags,
    ]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    running = []
    for index, core in enumerate(cores):
        several = (coordinator, f"--processes={len(cores)}", f"--process={index}")
        told = several if len(cores) > 1 else ()
        command = [sys.executable, "-m", "experiments.pretrain", *flags, *told]
        running.append(
            subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command],
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
                stdout=subprocess.DEVNULL,
            )
        )
    return running


def _step(run_dir: pathlib.Path) -> float:
    """The median seconds of a run's steps."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return statistics.median([line["seconds"] for line in lines if "seconds" in line][FIRST:])


if __name__ == "__main__":
    main()
