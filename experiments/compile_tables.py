"""The answers of `experiments.compile` as tables."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.plan_tables import count, facts, flops, gigabytes, grid, unit

ITEMS = {
    "parameters": "",
    "gradients": "as large as the parameters",
    "optimizer": "",
    "batch": "",
    "activations": "and other temporaries",
}


def show(answer: dict[str, Any], console: Console | None = None) -> None:
    """Prints all available parts of an answer, with advice last."""
    console = console or Console()
    sizes = " × ".join(f"{axis}={size}" for axis, size in answer["mesh"].items() if size > 1)
    console.print(
        f"[bold]{escape(answer['recipe'])}[/] on {answer['target']} ({sizes or 'one device'}): "
        f"{answer['batch_size']} rows of {answer['sequence_length']} tokens, "
        f"remat {answer['remat']}; compiled in {answer['compile_seconds']:.0f} s"
    )
    for section in (_memory, _time, _collectives, _traffic):
        for part in section(answer):
            console.print(part)
    for line in answer["advice"]:
        console.print(f"[bold]advice[/] {escape(line)}")


def _memory(answer: dict[str, Any]) -> Iterator[Table]:
    memory, refused = answer["memory"], answer["out_of_memory"]
    found = facts(f"Memory per {unit(answer['devices_per_chip'])}, GiB")
    for name, note in ITEMS.items():
        if name in memory:
            found.add_row(name, gigabytes(memory[name]), note)
    if refused:
        needed = refused["needed"]
        verdict = "does not fit" + ("" if needed else f": {escape(refused['message'])}")
        found.add_row("needed", gigabytes(needed) if needed else "more", f"[bold red]{verdict}[/]")
    else:
        share = f"{memory['peak'] / memory['available']:.0%} of available"
        found.add_row("peak", gigabytes(memory["peak"]), share)
    found.add_row("available", gigabytes(memory["available"]), "")
    yield found


def _time(answer: dict[str, Any]) -> Iterator[Table]:
    if "flops" not in answer:
        return
    found = facts(f"Step per {unit(answer['devices_per_chip'])}")
    found.add_row("model FLOPs", flops(answer["flops"]["model"]), "causal attention counts half")
    found.add_row("FLOPs of Pallas kernels", flops(answer["flops"]["kernels"]), "as declared")
    seconds = answer["time"]
    if seconds:
        notes = {
            "compute": f"{answer['cost']['cycles']:.3g} cycles, by XLA's estimate",
            "kernels": "Pallas kernels at the chip's peak: at least",
            "wire": "with all links sending at once: at least",
        }
        for name, note in notes.items():
            found.add_row(name, f"{1e3 * seconds[name]:,.1f} ms", note)
        both = f"{seconds['mfu_exposed']:.0%} to {seconds['mfu_hidden']:.0%}"
        found.add_row("MFU", both, "communication fully exposed, or hidden")
    stages, bubble = answer["pipeline"]["stages"], answer["pipeline"]["bubble"]
    if stages > 1:
        found.add_row("pipeline bubble", f"{bubble:.1%}", f"{stages} stages")
    yield found


def _collectives(answer: dict[str, Any]) -> Iterator[Table]:
    if not answer.get("collectives"):
        return
    columns = ("collective", "axes", "devices", "calls", "GB of arrays", "GB sent")
    title = f"Communication per {unit(answer['devices_per_chip'])} and step"
    found = grid(title, *columns, left=2)
    for row in answer["collectives"]:
        axes = " × ".join(row["axes"]) or "none"
        sizes = (f"{row['bytes'] / 1e9:,.3f}", f"{row['wire'] / 1e9:,.3f}")
        found.add_row(row["kind"], axes, str(row["group"]), count(row["calls"]), *sizes)
    yield found


def _traffic(answer: dict[str, Any]) -> Iterator[Table]:
    if not answer.get("traffic"):
        return
    found = grid("Communication by mesh axis", "axis", "GB sent", "minimum", "ratio")
    for row in answer["traffic"]:
        least = "—" if row["least"] is None else f"{row['least'] / 1e9:,.3f}"
        ratio = "—" if row["ratio"] is None else f"{row['ratio']:.2f}"
        found.add_row(row["axis"], f"{row['wire'] / 1e9:,.3f}", least, ratio)
    yield found
