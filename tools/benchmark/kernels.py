"""Compares implementations of an operation in one process: results, speed and memory.

Each case runs every contender once, compares its results with the first contender's, and then times
them in turns, so that disturbances of the machine affect all of them.
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from llmjax.kernels.flash_attention import Mask, flash_attention
from llmjax.kernels.linear_cross_entropy import linear_cross_entropy

TURN_S = 0.1  # approximate duration of a turn, which sets its number of calls
REFUSALS = (ValueError, NotImplementedError, ImportError, jax.errors.JaxRuntimeError)
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.03}  # relative to the largest value


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        name: what is computed.
        arrays: makes the arguments.
        contenders: functions of these by name; the first is the reference.
        work: the work that the result requires, in `unit`.
        unit: "FLOP", floating-point operations, or "B", bytes to be read.
    """

    name: str
    arrays: Callable[[], tuple[Any, ...]]
    contenders: Mapping[str, Callable]
    work: float
    unit: Literal["FLOP", "B"] = "FLOP"


@dataclasses.dataclass(frozen=True)
class Figures:
    """One contender's figures in a case.

    Attributes:
        case: the case's name.
        contender: the contender's name.
        refused: why it does not run here; the other figures are then unset.
        error: largest difference from the first contender's results, relative to their largest
            value.
        milliseconds: time per call, the median over turns.
        rate: work per second, in `unit`.
        unit: as in `Case`.
        speed: the first contender's time over this one's.
        temporary_mb: memory besides arguments and results.
        memory_share: `temporary_mb` over the first contender's.
    """

    case: str
    contender: str
    refused: str = ""
    error: float = 0.0
    milliseconds: float = 0.0
    rate: float = 0.0
    unit: str = ""
    speed: float = 1.0
    temporary_mb: float = 0.0
    memory_share: float = 1.0


class DisagreementError(RuntimeError):
    """A contender's results differ from the first one's."""


def attention(
    name: str,
    implementations: Mapping[str, Callable],
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    channels: int,
    dtype: str,
    backward: bool,
) -> Case:
    """Causal self-attention: the result and, with `backward`, all gradients."""
    shapes = [(batch, h, length, channels) for h in (heads, kv_heads, kv_heads, heads)]
    pairs = batch * heads * length * (length + 1) / 2
    # Two products forward and five backward, including the recomputed scores.
    products = 7 if backward else 2
    return Case(
        name,
        functools.partial(_normal, shapes, dtype),
        {who: _pass(attend, 3, backward) for who, attend in implementations.items()},
        2 * products * pairs * channels,
    )


def disentangled(
    name: str,
    implementations: Mapping[str, Callable],
    *,
    batch: int,
    heads: int,
    length: int,
    channels: int,
    dtype: str,
    rows: int = 512,
) -> Case:
    """Attention to content and relative positions, with all gradients."""
    states, table = (batch, heads, length, channels), (heads, rows, channels)
    distance = np.arange(length - 1, -length, -1)
    index = np.clip(distance + rows // 2, 0, rows - 1)

    def run(attend, query, key, value, c2p, p2c):
        mask, scale = Mask(causal=False), (3 * channels) ** -0.5
        return attend(query, key, value, index, mask, c2p=c2p, p2c=p2c, scale=scale)

    # As for attention, plus one tile-sized product forward and two backward for each term.
    return Case(
        name,
        functools.partial(_normal, [states, states, states, table, table, states], dtype),
        {
            who: _pass(functools.partial(run, attend), 5, True)
            for who, attend in implementations.items()
        },
        2 * (7 + 2 * 3) * batch * heads * length**2 * channels,
    )


def cross_entropy(
    name: str, implementations: Sequence[Any], *, tokens: int, width: int, vocab: int, dtype: str
) -> Case:
    """The loss and its gradients with respect to hidden states and head; the head is float32."""

    def arrays():
        hidden, weight = _normal([(1, tokens, width), (vocab, width)], dtype)
        targets = np.random.RandomState(1).randint(0, vocab, (1, tokens)).astype(np.int32)
        weight = (weight / width**0.5).astype(np.float32)
        return hidden, weight, jnp.asarray(targets)

    def run(implementation, hidden, weight, targets):
        def loss(hidden, weight):
            return linear_cross_entropy(hidden, weight, targets, implementation=implementation)[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(hidden, weight)

    contenders = {who: functools.partial(run, who) for who in implementations}
    return Case(name, arrays, contenders, 3 * 2.0 * tokens * width * vocab)


def decoding(
    name: str,
    implementations: Sequence[str],
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    **sizes: Any,
) -> Case:
    """One query per row over a full cache; the work is reading the cache."""
    capacity, channels, dtype = sizes["capacity"], sizes["channels"], sizes["dtype"]
    cache = (batch, kv_heads, capacity, channels)

    def run(implementation, query, key, value):
        mask = Mask(offset=jnp.full(batch, capacity - 1, jnp.int32))
        return flash_attention(query, key, value, mask, implementation=implementation)

    return Case(
        name,
        functools.partial(_normal, [(batch, heads, 1, channels), cache, cache], dtype),
        {who: functools.partial(run, who) for who in implementations},
        2.0 * np.prod(cache) * jnp.dtype(dtype).itemsize,
        "B",
    )


def _normal(shapes, dtype) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))


def _pass(function: Callable, count: int, backward: bool) -> Callable:
    """`function` of `count` arguments; with `backward`, also its gradients for a cotangent."""

    def run(*arrays):
        given, (cotangent,) = arrays[:count], arrays[count:]
        if not backward:
            return function(*given)
        out, pull = jax.vjp(function, *given)
        return out, *pull(cotangent.astype(out.dtype))

    return run


def measure(case: Case, rounds: int, say: Callable[[str], None]) -> Iterator[Figures]:
    """Every contender's figures.

    Raises:
        DisagreementError: a contender's results differ from the first one's.
    """
    arrays = case.arrays()
    programs, figures = {}, {}
    expected = None
    for who, function in case.contenders.items():
        say(f"{case.name}: {who} compiles")
        try:
            program = jax.jit(function).lower(*arrays).compile()
            found = [np.asarray(x, np.float32) for x in jax.tree.leaves(program(*arrays))]
        except REFUSALS as error:
            figures[who] = Figures(case.name, who, refused=str(error).splitlines()[0])
            continue
        expected = found if expected is None else expected
        off = _check(case, who, found, expected, str(arrays[0].dtype))
        analysis = program.memory_analysis()
        memory = analysis.temp_size_in_bytes / 1e6 if analysis else float("nan")
        programs[who] = program
        figures[who] = Figures(case.name, who, error=off, temporary_mb=memory, unit=case.unit)
    times = _times(programs, arrays, rounds)
    first = next(iter(programs), None)
    for who, row in figures.items():
        if who in times and first is not None:
            row = dataclasses.replace(
                row,
                milliseconds=1e3 * times[who],
                rate=case.work / times[who],
                speed=times[first] / times[who],
                memory_share=row.temporary_mb / (figures[first].temporary_mb or float("nan")),
            )
        yield row


def _check(case, who, found, expected, dtype) -> float:
    """The error, as in `Figures`."""
    pairs = zip(found, expected, strict=True)
    errors = [np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs]
    if not max(errors) <= TOLERANCES[dtype]:  # NaN too
        shares = ", ".join(f"{error:.2g}" for error in errors)
        raise DisagreementError(f"{case.name}: {who} is off by {shares} of the largest number")
    return float(max(errors))


def _times(programs: Mapping[str, Any], arrays, rounds: int) -> dict[str, float]:
    """Each program's median seconds per call."""
    calls = {}
    for who, program in programs.items():
        calls[who] = max(1, int(TURN_S / _turn(program, arrays, 1)))
    turns: dict[str, list[float]] = {who: [] for who in programs}
    for number in range(rounds):
        # The order alternates, so that no program always runs after the same other.
        for who in list(programs)[:: -1 if number % 2 else 1]:
            turns[who].append(_turn(programs[who], arrays, calls[who]))
    return {who: statistics.median(seconds) for who, seconds in turns.items()}


def _turn(program, arrays, calls: int) -> float:
    """Seconds per call, over back-to-back calls that keep a GPU busy."""
    start = time.perf_counter()
    for _ in range(calls):
        out = program(*arrays)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls


def table(rows: Sequence[Figures]) -> rich.table.Table:
    """A table of all figures."""
    shown = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for title in ("case", "contender", "ms", "rate", "speed", "temporaries", "share", "error"):
        text = title in ("case", "contender")
        shown.add_column(title, justify="left" if text else "right", no_wrap=title != "error")
    for row in rows:
        if row.refused:
            shown.add_row(row.case, row.contender, "[dim]—", *[""] * 4, f"[dim]{row.refused}")
            continue
        shown.add_row(
            row.case,
            row.contender,
            f"{row.milliseconds:.3f}",
            f"{row.rate / 1e9:,.0f} G{row.unit}/s",
            f"{row.speed:.2f}",
            f"{row.temporary_mb:.1f} MB",
            f"{row.memory_share:.3f}",
            f"{row.error:.1e}",
        )
    return shown


def show(cases: Sequence[Case], rounds: int, *, as_json: bool) -> None:
    """Prints the figures: one JSON object per line as they arrive, or a table at the end."""
    stderr = rich.console.Console(stderr=True, highlight=False)
    rows = []
    for case in cases:
        try:
            for row in measure(case, rounds, stderr.print):
                rows.append(row)
                if as_json:
                    print(json.dumps(dataclasses.asdict(row)), flush=True)
        except DisagreementError as error:
            sys.exit(f"bench: {error}")
    if not as_json:
        # A file has no width, and rich would squeeze the table into 80 columns.
        console = rich.console.Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        console.print(table(rows))
        device, load = jax.devices()[0].device_kind, os.getloadavg()[0]
        console.print(f"jax {jax.__version__}; {device}; load average {load:.1f}")
