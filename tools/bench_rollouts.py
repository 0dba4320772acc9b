#!/usr/bin/env python3
"""Benchmarks continuous batching against plain batches, on texts of uneven length.

    tools/bench_rollouts.py --prompts=64 --slots=8

The untrained model of a decoding workload samples almost uniformly from its vocabulary; with every
n-th token as a stop, lengths are geometric. Both ways generate the same texts, in turns in one
process; a "step" decodes one token for all slots.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from llmjax import models, sampling
from llmjax import spec as specs
from tools.benchmark.workloads import WORKLOADS


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default="W2-decode", help="model and prompt length")
    parser.add_argument("--prompts", type=int, default=64, help="texts (default: 64)")
    parser.add_argument("--slots", type=int, default=8, help="written at a time (default: 8)")
    parser.add_argument("--mean", type=int, default=64, help="mean tokens per text (default: 64)")
    parser.add_argument("--longest", type=int, default=192, help="maximum tokens (default: 192)")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns (default: 3)")
    options = parser.parse_args(arguments)
    ways = _ways(options)
    lengths = {name: way() for name, way in ways.items()}
    reference = lengths["plain batches"]
    for name, found in lengths.items():
        if not np.array_equal(found, reference):
            sys.exit(f"bench_rollouts: {name} did not generate the texts of plain batches")
    batches = (reference[at : at + options.slots] for at in range(0, len(reference), options.slots))
    print(
        f"{len(reference)} texts of {reference.min()} to {reference.max()} tokens, "
        f"{reference.mean():.0f} on average; steps: {sum(map(max, batches))} in plain batches, "
        f"{reference.sum() / options.slots:.0f} at least"
    )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    for name, turns in seconds.items():
        median = statistics.median(turns)
        speedup = statistics.median(seconds["plain batches"]) / median
        print(f"{name:14} {median:6.2f} s {reference.sum() / median:6.0f} tokens/s {speedup:5.2f}")


def _ways(options: argparse.Namespace) -> dict[str, Callable[[], np.ndarray]]:
    """The ways; each generates all texts and returns their lengths."""
    workload = WORKLOADS[options.workload]
    config = workload.settings.model
    key = jax.random.key(0)
    params = models.for_decoding(specs.init(key, workload.settings.spec), config)
    shape = (options.prompts, workload.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    keys = jax.random.split(key, options.prompts)

    def write(rows: slice, slots: int | None) -> np.ndarray:
        written = sampling.generate(
            params,
            prompts[rows],
            config,
            keys[rows],
            max_new_tokens=options.longest,
            sampler=sampling.SamplerConfig(),
            stop_tokens=range(0, config.vocab_size, options.mean),
            slots=slots,
        )
        return written.lengths

    def plain() -> np.ndarray:
        starts = range(0, options.prompts, options.slots)
        return np.concatenate([write(slice(at, at + options.slots), None) for at in starts])

    return {
        "plain batches": plain,
        "continuous": lambda: write(slice(None), options.slots),
    }


if __name__ == "__main__":
    main()
