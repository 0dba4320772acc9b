"""The answers of `experiments.plan` as tables."""

import math
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmjax import planning

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def show(answer: dict[str, Any], console: Console | None = None) -> None:
    """Prints all available parts of an answer, with warnings last."""
    console = console or Console()
    sections = (_model, _time, _data, _supply, _memory, _budget, _overtraining, _fit)
    for section in sections:
        for table in section(answer):
            console.print(table)
            console.print()
    for warning in answer["warnings"]:
        console.print(f"[bold yellow]warning[/] {escape(warning)}")


def count(value: float) -> str:
    """A number with three digits and a unit: 8.03 B, 15.0 T."""
    if not math.isfinite(value):
        return "never"
    for unit, letter in UNITS:
        if value >= 0.9995 * unit:
            return f"{value / unit:,.3g} {letter}" if value < 999.5 * unit else f"{value:.3g}"
    return f"{value:,.3g}"


def ratio(value: float) -> str:
    """A number with three significant digits, or all of its integer digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def flops(value: float) -> str:
    """A number of operations: 7.23e+23."""
    return f"{value:.3g}"


def duration(days: float) -> str:
    """A duration in a suitable unit."""
    for size, unit in ((365.25, "years"), (1, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        if days >= size:
            return (
                f"{days / size:,.3g} {unit}" if days / size < 1000 else f"{days / size:,.0f} {unit}"
            )
    return f"{days * 86400:.3g} seconds"


def dollars(value: float | None) -> str:
    """US dollars."""
    if value is None:
        return "—"
    return f"${value:,.0f}" if value < 1e6 else f"${count(value)}"


def gigabytes(value: float) -> str:
    """Bytes in GiB."""
    return f"{value / 2**30:,.2f}"


def unit(devices_per_chip: int) -> str:
    """The unit of figures per device: a chip, or a part of one."""
    return "chip" if devices_per_chip == 1 else f"device ({devices_per_chip} to a chip)"


def grid(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table whose first `left` columns hold names, and the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    return table


def facts(title: str) -> Table:
    """An empty table with a name, a number and a note in each row."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    return table


def _model(answer: dict[str, Any]) -> Iterator[Table]:
    found = answer.get("model")
    if not found:
        return
    table = facts(found["recipe"] or "Model")
    table.add_row("parameters", count(found["params"]), "")
    if found["active_params"] != found["params"]:
        table.add_row("  active per token", count(found["active_params"]), "")
    exact, rule = found["flops_per_token"], found["flops_per_token_6n"]
    note = f"the 6N rule gives {flops(rule)} ({rule / exact - 1:+.1%})"
    note = note if exact != rule else "by the 6N rule"
    table.add_row("FLOPs per token", flops(exact), note)
    if found["tokens"]:
        each = f"{ratio(found['tokens_per_param'])} per parameter"
        table.add_row("tokens", count(found["tokens"]), each)
        rule = f"6ND is {flops(found['flops_6nd'])}" if exact != rule else "6ND"
        table.add_row("training FLOPs", flops(found["flops"]), rule)
    yield table


def _time(answer: dict[str, Any]) -> Iterator[Table]:
    found, training = answer.get("cluster"), answer.get("training")
    if not found or not training:
        return
    chips = f"{found['chips']:,} × {found['chip']}"
    table = facts(f"Time and cost on {chips}")
    peak = f"of {found['flops'] / 1e12:,.0f} TFLOP/s per chip (data sheet)"
    table.add_row("utilization", f"{found['utilization']:.0%}", peak)
    table.add_row("time", duration(training["days"]), "")
    table.add_row("chip-hours", count(training["chip_hours"]), "")
    table.add_row("cost", dollars(training["dollars"]), _price(found))
    if "claim" in answer:
        claimed = answer["claim"]
        table.add_row(
            f"needed for {claimed['days']:g} days", f"{claimed['utilization']:.0%}", "utilization"
        )
    yield table


def _price(found: dict[str, Any]) -> str:
    price = found["price"]
    if price is None:
        return "the price is unknown: give --price"
    note = f"${price['dollars']:.2f} per chip-hour"
    return note + (f": {price['offer']}, list price of {price['date']}" if price["date"] else "")


def _data(answer: dict[str, Any]) -> Iterator[Table]:
    rows = answer.get("data")
    if not rows:
        return
    timed = "days" in rows[0]
    names = ("time", "cost") if timed else ()
    table = grid(
        "Data needed for a model of this size", "tokens/parameter", "tokens", "FLOPs", *names
    )
    for row in rows:
        spent = (duration(row["days"]), dollars(row["dollars"])) if timed else ()
        table.add_row(str(row["ratio"]), count(row["tokens"]), flops(row["flops"]), *spent)
    yield table


def _supply(answer: dict[str, Any]) -> Iterator[Table]:
    found = answer.get("supply")
    if not found:
        return
    title = f"Text in {found['folder']}, for training on {count(found['tokens'])} tokens"
    table = grid(title, "source", "available", "share", "read", "epochs", "worth, as new")
    for row in found["sources"]:
        numbers = (count(row["tokens"]), f"{row['share']:.1%}", count(row["read"]))
        table.add_row(row["name"], *numbers, ratio(row["epochs"]), count(row["worth"]))
    yield table
    table = facts(f"Sufficient, with up to {planning.EPOCHS:g} epochs of any source, for")
    table.add_row("tokens", count(found["enough_for"]), "in these shares")
    for row in found["needs"]:
        answered = "yes" if row["enough"] else "no"
        table.add_row(f"{row['ratio']} per parameter", answered, f"{count(row['tokens'])} tokens")
    yield table


def _memory(answer: dict[str, Any]) -> Iterator[Table]:
    found = answer.get("memory")
    if not found:
        return
    sizes = " × ".join(f"{name}={size}" for name, size in found["mesh"].items() if size > 1)
    per = unit(found["devices_per_chip"])
    table = facts(f"Peak memory per {per}, GiB (mesh {sizes or 'of one device'})")
    each = found["parameters"] / 4  # number of float32 parameters on a device

    def row(name: str, note: str) -> None:
        table.add_row(name.replace("_", " "), gigabytes(found[name]), note)

    row("parameters", "4 bytes per parameter")
    row("optimizer", f"{found['optimizer'] / each:.3g} bytes per parameter")
    if found["gradients"] < 0.99 * found["all_gradients"]:
        row("gradients", f"at that moment; {gigabytes(found['all_gradients'])} when complete")
    else:
        row("gradients", "4 bytes per parameter, and partial sums")
    row("weights", "cast for products, or gathered from other chips")
    row("activations", f"kept for the backward pass; remat={found['remat']}")
    row("working", "of the current layer or head")
    row("batch", "")
    share = found["total"] / found["available"]
    of_all = f"{share:.0%} of the {gigabytes(found['available'])} there are"
    table.add_row("total", gigabytes(found["total"]), of_all, style="bold" if share <= 1 else "red")
    yield table


def _budget(answer: dict[str, Any]) -> Iterator[Table]:
    found = answer.get("budget")
    if not found:
        return
    title = f"Compute-optimal for {flops(found['flops'])} FLOPs"
    if "days" in found:
        spent = duration(found["days"]), f"{count(found['chip_hours'])} chip-hours"
        title += f" ({', '.join(spent)}, {dollars(found['dollars'])})"
    table = grid(title, "law", "parameters", "tokens", "tokens/parameter", "loss")
    for row in found["optima"]:
        loss = f"{row['loss']:.3f}" if "loss" in row else ""
        numbers = (count(row["params"]), count(row["tokens"]), ratio(row["tokens_per_param"]))
        table.add_row(row["law"], *numbers, loss)
    yield table


def _overtraining(answer: dict[str, Any]) -> Iterator[Table]:
    rows = answer.get("overtraining")
    if not rows:
        return
    table = grid(
        f"Smaller models trained for longer (law: {answer['law']})",
        "parameters",
        "tokens",
        "tokens/N",
        "loss",
        "worse",
        "to match",
        "FLOPs",
    )
    for row in rows:
        extra = row["extra"]
        times = f"× {extra:,.0f}" if extra >= 100 else f"× {extra:.2f}"
        table.add_row(
            f"{count(row['params'])} ({row['share']:.0%})" + (" ←" if row["given"] else ""),
            count(row["tokens"]),
            ratio(row["tokens"] / row["params"]),
            f"{row['loss']:.3f}",
            f"{row['penalty']:.3f}",
            count(row["tokens_to_match"]),
            times if math.isfinite(extra) else "—",
        )
    yield table


def _fit(answer: dict[str, Any]) -> Iterator[Table]:
    found = answer.get("fit")
    if not found:
        return
    title = f"L = E + A/N^α + B/D^β, fit to {found['runs']} runs, error {found['error']:.2%}"
    interval = f"{found['share']:.0%} interval (bootstrap)"
    table = grid(title, "", "value", interval)
    for name in ("E", "A", "B", "alpha", "beta", "a"):
        low, high = found[name]["interval"]
        label = "N grows as C^" if name == "a" else name
        table.add_row(label, f"{found[name]['value']:.4g}", f"{low:.4g} … {high:.4g}")
    yield table
