#!/usr/bin/env python3
"""Finds the fastest tile sizes on this device and writes them to the table that kernels read.

    tools/tune_kernels.py                                       every kernel of this platform
    tools/tune_kernels.py --kernel=linear_cross_entropy         kernels with this prefix
    tools/tune_kernels.py --channels=64,128 --dtype=bfloat16    of attention's heads
    tools/tune_kernels.py --dry-run                             print results only

The results of every candidate are compared with the default's, and both are timed in turns.
Candidates that do not compile are skipped, and a gain below 3 % changes nothing. The table is
llmjax/kernels/tuned.json, by device kind: commit it.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import rich.console
import rich.progress

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from llmjax.kernels import tuning
from tools.benchmark import kernel_cases
from tools.benchmark.kernels import Case, Figures, measure

GAIN = 1.03  # minimum speedup of a change


@dataclasses.dataclass(frozen=True)
class Subject:
    """A kernel and the sizes to try.

    Attributes:
        kernel: as in `tuning.sizes`.
        platforms: where it runs.
        case: of attention's head channels and a precision; "default" computes it.
        candidates: values of each size.
    """

    kernel: str
    platforms: tuple[str, ...]
    case: Callable[[int, str], Case]
    candidates: Mapping[str, Sequence[int]]

    def trials(self) -> Iterator[dict[str, int]]:
        """All combinations, after the default."""
        yield {}
        for values in itertools.product(*self.candidates.values()):
            yield dict(zip(self.candidates, values, strict=True))


BLOCKS: dict[str, Sequence[int]] = {"keys": (32, 64, 128), "warps": (4, 8), "stages": (2, 3)}
SUBJECTS = (
    Subject(
        "flash_attention.xla",
        ("cpu",),
        kernel_cases.tune_attention("xla"),
        {"most": (4, 8, 16), "least": (64, 128, 256)},
    ),
    Subject(
        "linear_cross_entropy.xla",
        ("cpu", "gpu"),
        kernel_cases.tune_cross_entropy("xla"),
        {"chunk_bytes": tuple(2**n for n in range(24, 31))},
    ),
    Subject(
        "flash_attention.pallas_tpu",
        ("tpu",),
        kernel_cases.tune_attention("pallas_tpu"),
        {"rows": (256, 512, 1024, 2048), "scores": (2**17, 2**18, 2**19, 2**20)},
    ),
    Subject(
        "linear_cross_entropy.pallas_tpu",
        ("tpu",),
        kernel_cases.tune_cross_entropy("pallas_tpu"),
        {"fixed": (512, 1024, 2048), "passing": (256, 512, 1024)},
    ),
    Subject(
        "disentangled_attention.pallas_tpu",
        ("tpu",),
        kernel_cases.tune_disentangled("pallas_tpu"),
        {"block": (128, 256, 512)},
    ),
    *(
        Subject(f"flash_attention.pallas_gpu.{part}", ("gpu",), case, BLOCKS | {"queries": queries})
        for part, case, queries in (
            ("forward", kernel_cases.tune_attention("pallas_gpu", backward=False), (64, 128)),
            ("query", kernel_cases.tune_attention("pallas_gpu"), (64, 128)),
            ("key", kernel_cases.tune_attention("pallas_gpu"), (64, 128)),
            ("few", kernel_cases.tune_decoding("pallas_gpu"), (16, 32)),
        )
    ),
    Subject(
        "linear_cross_entropy.pallas_gpu",
        ("gpu",),
        kernel_cases.tune_cross_entropy("pallas_gpu"),
        {
            "tokens": (64, 128),
            "vocab": (128, 256),
            "width": (32, 64),
            "num_warps": (4, 8),
            "num_stages": (2, 3, 4),
        },
    ),
)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _options(arguments)
    device = jax.devices()[0].device_kind
    # A copy: the table is cached.
    found = copy.deepcopy(tuning.table(tuning.FILE).get(device, {}))
    console = rich.console.Console(highlight=False)
    jobs = [
        (subject, channels, options.dtype)
        for subject in SUBJECTS
        if jax.default_backend() in subject.platforms and subject.kernel.startswith(options.kernel)
        for channels in options.channels
    ]
    if not jobs:
        sys.exit(f"tune: no kernel {options.kernel!r} runs on {jax.default_backend()}")
    with rich.progress.Progress(console=rich.console.Console(stderr=True)) as progress:
        bar = progress.add_task("", total=sum(len([*job[0].trials()]) for job in jobs))

        def say(text: str) -> None:
            progress.update(bar, description=text, advance=1)

        for subject, channels, dtype in jobs:
            name, best = tune(subject, channels, dtype, options.rounds, say)
            cases = found.setdefault(subject.kernel, {})
            cases.pop(name, None)
            if best.sizes:
                cases[name] = best.sizes
            console.print(f"{subject.kernel}, {name}: {best}")
    if not options.dry_run:
        write({device: {kernel: cases for kernel, cases in found.items() if cases}})
        console.print(f"{device}: written to {tuning.FILE.name}")


@dataclasses.dataclass(frozen=True)
class Best:
    """The fastest sizes (none for the default's) and their speedup over the default."""

    sizes: dict[str, int]
    speed: float

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return f"{sizes}: {self.speed:.2f} × as fast" if sizes else "the default"


def tune(
    subject: Subject, channels: int, dtype: str, rounds: int, say: Callable[[str], None]
) -> tuple[str, Best]:
    """The name of the case, and its best sizes."""
    case = subject.case(channels, dtype)
    run = case.contenders["default"]
    trials = {json.dumps(sizes): sizes for sizes in subject.trials()}
    contenders = {text: _under(subject.kernel, sizes, run) for text, sizes in trials.items()}
    case = dataclasses.replace(case, name=subject.kernel, contenders=contenders)
    rows: list[Figures] = [row for row in measure(case, rounds, say) if not row.refused]
    fastest = max(rows, key=lambda row: row.speed)
    sizes = trials[fastest.contender] if fastest.speed >= GAIN else {}
    width = case.arrays()[0].shape[-1]
    return tuning.case(dtype, width), Best(sizes, fastest.speed)


def _under(kernel: str, sizes: dict[str, int], run: Callable) -> Callable:
    """`run`, traced with these sizes of the kernel."""

    def traced(*arrays: Any) -> Any:
        with tuning.trial(kernel, sizes):
            return run(*arrays)

    return traced


def write(found: dict[str, Any]) -> None:
    """Writes devices to the table, replacing their entries."""
    table = tuning.table(tuning.FILE) | found
    table = {device: kernels for device, kernels in sorted(table.items()) if kernels}
    tuning.FILE.write_text(json.dumps(table, indent=2) + "\n")
    tuning.table.cache_clear()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", default="", help="prefix of kernel names (default: all)")
    parser.add_argument(
        "--channels",
        default="64,128,256",
        type=lambda text: [int(number) for number in text.split(",")],
        help="channels of heads; cross entropy uses 16 times as many (default: 64,128,256)",
    )
    usual = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    parser.add_argument(
        "--dtype", default=usual, choices=("bfloat16", "float32"), help=f"(default here: {usual})"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed turns (default: 5)")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
