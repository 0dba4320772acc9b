"""Answers of `experiments.compile` as plain data, for JSON and tables."""

import dataclasses
import math
import pathlib
import time
from collections import defaultdict
from typing import Any

import jax

from experiments import objective
from experiments.flags import FlagError
from experiments.recipe import Recipe
from experiments.tasks.pretraining import Pretraining
from llmjax import mesh, planning
from llmjax.models import pipeline
from llmjax.planning.target import Target

ROOM = 0.5  # share of a chip's memory: a program that needs less could hold more activations
CLOSE = 1.05  # traffic relative to the minimum that is still good


@dataclasses.dataclass(frozen=True)
class Step:
    """A recipe's training step on a mesh, before it is compiled.

    Attributes:
        lowered: the program.
        mesh: sizes of the mesh's axes.
        memory: bytes per chip of the items that are known without compiling.
    """

    lowered: jax.stages.Lowered
    mesh: dict[str, int]
    memory: dict[str, float]


def lower(recipe: Recipe, target: Target) -> Step:
    """The step that `experiments.pretrain` would run on the target, with abstract arrays.

    Raises:
        FlagError: the mesh does not fit the target, or the recipe the mesh.
    """
    made = Pretraining(recipe, pathlib.Path()).make_mesh(target.devices)
    with jax.set_mesh(made):
        step, state = objective.step_ahead(recipe)
        shape, axes = (recipe.batch_size, recipe.sequence_length), ("batch", "sequence")
        rows = jax.ShapeDtypeStruct(shape, "int32", sharding=mesh.named_sharding(axes))
        names = ("tokens", "targets", "segment_ids", "positions")
        batch = dict.fromkeys(names[:2] if recipe.packing == "windows" else names, rows)
        lowered = step.lower(state, batch)
    params = _bytes(state.params)
    memory = {
        "parameters": params,
        "gradients": params,  # same precision and sharding as the parameters
        "optimizer": _bytes(state.opt_state),
        "batch": _bytes(batch),
    }
    return Step(lowered, dict(made.shape), memory)


def _bytes(arrays: Any) -> float:
    return float(sum(map(planning.local_bytes, jax.tree.leaves(arrays))))


def answer(recipe: Recipe, target: Target, hlo: pathlib.Path | None = None) -> dict[str, Any]:
    """Compiles a recipe's step, and reports memory, compute and communication per chip.

    Args:
        recipe: the recipe.
        target: the chips.
        hlo: file for the program's text.

    Raises:
        FlagError: as in `lower`, or the file cannot be written.
    """
    step = lower(recipe, target)
    start = time.perf_counter()
    compiled = planning.compile_ahead(step.lowered)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {
        "recipe": recipe.name,
        "target": target.name,
        "devices": len(target.devices),
        "devices_per_chip": target.chip.parts,
        "mesh": step.mesh,
        "batch_size": recipe.batch_size,
        "sequence_length": recipe.sequence_length,
        "accumulate": recipe.accumulate,
        "remat": recipe.model.remat,
        "compile_seconds": seconds,
        "pipeline": _pipeline(recipe, step),
        "out_of_memory": None,
    }
    available = target.chip.memory / target.chip.parts
    if isinstance(compiled, planning.OutOfMemory):
        found["out_of_memory"] = dataclasses.asdict(compiled)
        found["memory"] = step.memory | {"available": compiled.available or available}
        found["fits"] = False
    else:
        if hlo is not None:
            _write(hlo, compiled.as_text() or "")
        found |= _measured(recipe, target, step, compiled, available)
    found["advice"] = advice(found)
    return found


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise FlagError(f"--hlo={path}: cannot be written: {error.strerror}") from error


def _measured(recipe, target, step, compiled, available) -> dict[str, Any]:
    """The figures of a program that compiles."""
    peak = planning.peak_bytes(compiled)
    text = compiled.as_text()
    moved = planning.collectives(text, step.mesh)
    sent = planning.by_axis(moved, step.mesh)
    cost = planning.program_cost(text)
    tokens = recipe.batch_size * recipe.sequence_length / len(target.devices)
    model_flops = objective.training_flops(recipe) * tokens
    seconds = planning.step_time(cost, sum(sent.values()), target.chip)
    memory = step.memory | {
        "activations": max(0.0, peak - sum(step.memory.values())),
        "peak": peak,
        "available": available,
    }
    return {
        "fits": peak <= available,
        "memory": memory,
        "flops": {"model": model_flops, "kernels": cost.kernel_flops},
        "cost": dataclasses.asdict(cost),
        "time": seconds and _time(seconds, model_flops, target),
        "collectives": _collectives(moved),
        "traffic": _traffic(recipe, step, sent),
    }


def _time(seconds: planning.Time, model_flops: float, target: Target) -> dict[str, float]:
    ideal = model_flops / (target.chip.flops / target.chip.parts)
    return {
        "compute": seconds.compute,
        "kernels": seconds.kernels,
        "wire": seconds.wire,
        "hidden": seconds.hidden,
        "exposed": seconds.exposed,
        "mfu_hidden": ideal / seconds.hidden,
        "mfu_exposed": ideal / seconds.exposed,
    }


def _collectives(moved: dict[planning.Collective, planning.Amounts]) -> list[dict[str, Any]]:
    """Collectives by kind and axes, the largest first."""
    grouped: dict[tuple, planning.Amounts] = defaultdict(planning.Amounts)
    for one, amounts in moved.items():
        grouped[one.kind, one.axes, one.group] += amounts
    ordered = sorted(grouped.items(), key=lambda item: -item[1].wire)
    return [
        {"kind": kind, "axes": list(axes), "group": group, **dataclasses.asdict(amounts)}
        for (kind, axes, group), amounts in ordered
    ]


def _traffic(recipe: Recipe, step: Step, sent: dict[str, float]) -> list[dict[str, Any]]:
    """Traffic along each axis and, for decoders, its minimum."""
    least: dict[str, float] = {}
    if recipe.objective == "clm":
        least = planning.least_traffic(
            recipe.model,
            step.mesh,
            recipe.batch_size,
            recipe.sequence_length,
            accumulate=recipe.accumulate,
            schedule=_schedule(recipe, step),
            zero=recipe.mesh.zero,
        )
    rows = []
    for axis, wire in sent.items():
        minimum = least.get(axis)
        ratio = wire / minimum if minimum else None
        rows.append({"axis": axis, "wire": wire, "least": minimum, "ratio": ratio})
    return rows


def _pipeline(recipe: Recipe, step: Step) -> dict[str, Any]:
    """The number of pipeline stages and their idle share."""
    plan = _schedule(recipe, step)
    return {"stages": plan.stages, "bubble": plan.bubble}


def _schedule(recipe: Recipe, step: Step) -> pipeline.Schedule:
    chips = math.prod(step.mesh.values())
    made = mesh.abstract_mesh(recipe.mesh, chips, "chip", "tpu")
    with jax.sharding.use_abstract_mesh(made):
        if mesh.size("layers") == 1:
            return planning.ALONE
        model, rows = recipe.model, recipe.batch_size // recipe.accumulate
        period = len(model.attention.pattern)
        return pipeline.schedule(model.pipeline, rows, model.num_layers, period)


def advice(found: dict[str, Any]) -> list[str]:
    """Advice on a recipe, from an answer."""
    said = []
    memory, sizes = found["memory"], found["mesh"]
    state = memory["parameters"] + memory["gradients"] + memory["optimizer"]
    if not found["fits"]:
        if found["remat"] != "full":
            said.append(
                "--model.remat=full stores one activation per layer and recomputes the rest"
            )
        if state > 0.5 * memory["available"]:
            said.append(
                "more --mesh.fsdp (or --mesh.tensor): parameters, gradients and optimizer alone "
                f"take {state / memory['available']:.0%} of a chip"
            )
        said.append("a smaller --batch_size, or --accumulate to split the same one")
        return said
    if memory["peak"] < ROOM * memory["available"]:
        room = 1 - memory["peak"] / memory["available"]
        less = {"full": "--model.remat=dots", "dots": "--model.remat=none"}.get(found["remat"])
        way = f"{less} recomputes less; or " if less else ""
        said.append(f"{room:.0%} of the memory is free: {way}a larger --batch_size")
    for row in found["traffic"]:
        if row["ratio"] and row["ratio"] > CLOSE:
            said.append(
                f"axis {row['axis']} carries {row['ratio']:.2f} × the minimum: see its collectives"
            )
    seconds = found["time"]
    if seconds and seconds["wire"] > seconds["compute"] + seconds["kernels"]:
        heaviest = max(found["traffic"], key=lambda row: row["wire"])["axis"]
        said.append(
            f"communication is the bottleneck, mostly axis {heaviest}={sizes.get(heaviest)}: use "
            "more rows per chip (a larger --batch_size), or fewer chips along that axis"
        )
    return said
