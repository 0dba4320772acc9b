#!/usr/bin/env python3
"""Times the kernels on a GPU: attention, cross entropy and decoding, each beside its rivals.

    tools/bench_gpu.py                a table, in less than ten minutes
    tools/bench_gpu.py --json         one JSON object a line
    tools/bench_gpu.py --rehearse     small shapes on this machine, whatever it has

Results are compared before anything is timed: the program ends with an error if a contender
computes something else than the first one of its case. What cannot run here says why. "speed" is
the first one's time over this one's, "share" this one's memory beside arguments and results over
the first one's. tokamax needs `pip install -e '.[tokamax]'`.
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
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds}: give 1 or more")
    if not options.rehearse and jax.default_backend() != "gpu":
        parser.error(f"jax finds no GPU, only {jax.devices()[0].device_kind}; try --rehearse")
    absl.flags.FLAGS.mark_as_parsed()  # or some releases of tokamax read our command line
    cases = kernel_cases.rehearsal() if options.rehearse else kernel_cases.gpu()
    kernels.show(cases, options.rounds, as_json=options.json)


if __name__ == "__main__":
    main()
