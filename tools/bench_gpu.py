#!/usr/bin/env python3
"""Benchmarks the kernels on a GPU: attention, cross entropy and decoding, against alternatives.

    tools/bench_gpu.py                a table, in less than ten minutes
    tools/bench_gpu.py --json         one JSON object per line
    tools/bench_gpu.py --rehearse     small shapes, on any machine

Results are compared before anything is timed: the program ends with an error if a contender's
results differ from those of the first one in its case. Contenders that cannot run report why.
"speed" is the first one's time divided by this one's; "share" is this one's temporary memory
divided by the first one's. tokamax needs `pip install -e '.[tokamax]'`.
"""

import argparse
import pathlib
import sys

import absl.flags
import jax

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tools.benchmark import kernel_cases, kernels


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="small shapes, on any machine")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns (default: 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds}: give 1 or more")
    if not options.rehearse and jax.default_backend() != "gpu":
        parser.error(f"jax finds no GPU, only {jax.devices()[0].device_kind}; try --rehearse")
    absl.flags.FLAGS.mark_as_parsed()  # otherwise some releases of tokamax parse our command line
    cases = kernel_cases.rehearsal() if options.rehearse else kernel_cases.gpu()
    kernels.show(cases, options.rounds, as_json=options.json)


if __name__ == "__main__":
    main()
