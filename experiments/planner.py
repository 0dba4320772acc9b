"""Answers of `experiments.plan` as plain data, for JSON and tables."""

import dataclasses
import math
import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments import objective, runs
from experiments.flags import FlagError
from experiments.recipe import Recipe
from experiments.tasks.pretraining import Pretraining
from llmjax import data, mesh, planning, spec
from llmjax.data import mixture
from llmjax.data.mixture import MixtureConfig
from llmjax.planning import cost, fitting, scaling
from llmjax.train.metrics import read_jsonl

LAWS: dict[str, scaling.LossLaw] = {
    "besiroglu": scaling.BESIROGLU,
    "hoffmann": scaling.HOFFMANN,
    "rounded": scaling.ROUNDED,
}
NAMES = {
    "besiroglu": "Besiroglu et al. 2024",
    "hoffmann": "Hoffmann et al. 2022",
    "rounded": "Hoffmann et al., rounded",
}
FRONTIERS: dict[str, scaling.Law] = {
    "Chinchilla, approach 1": scaling.APPROACH_1,
    "Chinchilla, approach 2": scaling.APPROACH_2,
    "Chinchilla, approach 3": scaling.APPROACH_3,
}
RATIOS = (20, 50, 100)  # tokens per parameter: compute-optimal, and trained for longer
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)  # of the optimal size, for over-training
ISOFLOPS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the budget, in the plot


@dataclasses.dataclass(frozen=True)
class Work:
    """The size of a training run.

    Attributes:
        name: name of the recipe; empty without one.
        params: N, all parameters.
        active: active parameters per token; fewer than N in a mixture of experts.
        tokens: D; None if unknown.
        flops_per_token: exact for a recipe; otherwise 6·N.
    """

    name: str
    params: float
    active: float
    tokens: float | None
    flops_per_token: float

    @property
    def flops(self) -> float | None:
        """FLOPs of the whole training."""
        return None if self.tokens is None else self.flops_per_token * self.tokens


def work_of(recipe: Recipe | None, params: float | None, tokens: float | None) -> Work | None:
    """The work of a recipe, or of a model of known size; None without either."""
    if recipe is not None:
        read = recipe.steps * recipe.batch_size * recipe.sequence_length
        return Work(
            recipe.name,
            spec.count(objective.param_spec(recipe)),
            objective.active_params(recipe),
            tokens or read,
            objective.training_flops(recipe),
        )
    if params is None:
        return None
    return Work("", params, params, tokens, scaling.FLOPS_PER_PARAM * params)


def describe(work: Work) -> dict[str, Any]:
    """Size and FLOPs, compared with the 6·N rule."""
    rule = scaling.FLOPS_PER_PARAM * work.active
    tokens = work.tokens
    return {
        "recipe": work.name,
        "params": work.params,
        "active_params": work.active,
        "tokens": tokens,
        "tokens_per_param": tokens and tokens / work.active,
        "flops_per_token": work.flops_per_token,
        "flops_per_token_6n": rule,
        "flops": work.flops,
        "flops_6nd": tokens and rule * tokens,
    }


def spend(flops: float, cluster: cost.Cluster | None) -> dict[str, Any]:
    """Converts FLOPs to time and money."""
    if cluster is None:
        return {"flops": flops}
    return {
        "flops": flops,
        "days": cluster.seconds(flops) / cost.DAY,
        "chip_hours": cluster.chip_hours(flops),
        "dollars": cluster.cost(flops),
    }


def data_needed(work: Work, cluster: cost.Cluster | None) -> list[dict[str, Any]]:
    """Tokens at 20 to 100 per parameter, and the cost of training on them."""
    rows = ({"ratio": ratio, "tokens": ratio * work.active} for ratio in RATIOS)
    return [row | spend(work.flops_per_token * row["tokens"], cluster) for row in rows]


def supply(work: Work, folder: str, settings: MixtureConfig) -> dict[str, Any]:
    """Prepared text compared with the need: of this run, and at 20 to 100 tokens per parameter.

    Raises:
        FlagError: there are no prepared data, or the mixture does not fit them.
    """
    try:
        manifest = data.load_manifest(folder)
        tokens = work.tokens or RATIOS[0] * work.active
        sizes = {source.name: float(source.train.tokens) for source in manifest.sources}
        found = planning.supplies(sizes, mixture.weights(manifest, settings, tokens), tokens)
        free = mixture.weights(manifest, dataclasses.replace(settings, max_epochs=0.0))
    except (ValueError, FileNotFoundError) as error:
        raise FlagError(f"--prepared={folder}: {error}") from error
    plain = planning.enough_for(sizes, free)
    needs = ((ratio, ratio * work.active) for ratio in RATIOS)
    return {
        "folder": folder,
        "tokens": tokens,
        "unique": sum(sizes.values()),
        "worth": sum(source.worth for source in found),
        "enough_for": plain,
        "sources": [
            dataclasses.asdict(one) | {"epochs": one.epochs, "worth": one.worth} for one in found
        ],
        "needs": [
            {"ratio": ratio, "tokens": needed, "enough": needed <= plain} for ratio, needed in needs
        ],
    }


def optima(flops: float, name: str, law: scaling.LossLaw) -> list[dict[str, Any]]:
    """The optimal model for a budget, by each law; the chosen law last, with expected loss."""
    found = []
    for label, one in {**FRONTIERS, name: law}.items():
        best = one.optimal(flops)
        row = {"law": label, "params": best.params, "tokens": best.tokens}
        row |= {"tokens_per_param": best.tokens / best.params}
        if isinstance(one, scaling.LossLaw):
            row |= {"loss": one.loss(best.params, best.tokens)}
        found.append(row)
    return found


def overtraining(
    flops: float, law: scaling.LossLaw, params: float | None = None
) -> list[dict[str, Any]]:
    """Smaller models at the budget's cost, and at its optimal loss, including `params`."""
    best = law.optimal(flops).params
    sizes = {share * best for share in SHARES} | ({params} if params else set())
    rows = []
    for size in sorted(sizes, reverse=True):
        row = dataclasses.asdict(scaling.overtrain(law, flops, size))
        rows.append({"share": size / best, "given": size == params, **row})
    return rows


def memory(recipe: Recipe, cluster: cost.Cluster) -> dict[str, Any]:
    """Memory of the recipe's step on each device, by item, in bytes.

    Raises:
        ValueError: the recipe does not divide over the chips, or cannot run on them.
    """
    chip = cluster.chip
    devices = cluster.count * chip.parts
    made = mesh.abstract_mesh(recipe.mesh, devices, chip.kinds[-1], chip.platform)
    Pretraining(recipe, pathlib.Path()).require_divides(made)
    with jax.sharding.use_abstract_mesh(made):
        step, state = objective.step_ahead(recipe)
        batch = planning.abstract_batch(recipe.batch_size, recipe.sequence_length)
        found = planning.step_memory(step, state, batch)
    return {
        "mesh": dict(made.shape),
        "remat": recipe.model.remat,
        "devices_per_chip": chip.parts,
        "available": chip.memory / chip.parts,
        "total": found.total,
        "params": spec.count(objective.param_spec(recipe)),
        **dataclasses.asdict(found),
    }


def claim(work: Work, cluster: cost.Cluster, days: float) -> dict[str, Any]:
    """The utilization that training in `days` days needs.

    Raises:
        FlagError: the number of tokens is unknown.
    """
    if work.flops is None:
        raise FlagError("--days is about a training run: give --tokens too")
    needed = cluster.needed_utilization(work.flops, days * cost.DAY)
    return {"days": days, "utilization": needed, "believable": needed <= cost.GOOD_UTILIZATION}


def fit_runs(paths: Sequence[str]) -> tuple[fitting.Runs, fitting.Fit]:
    """Fits a law to the user's own runs: files, or run folders.

    Raises:
        FlagError: a path is neither, or there are too few runs.
    """
    try:
        found = fitting.merged([_runs_at(pathlib.Path(path)) for path in paths])
        return found, planning.fit(found)
    except (ValueError, OSError) as error:
        raise FlagError(f"--runs: {error}") from error


def _runs_at(path: pathlib.Path) -> fitting.Runs:
    recipe = runs.saved_recipe(path)
    if recipe is None:
        return fitting.read_runs(path)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path}: laws are fitted to runs of pretraining, not of another stage")
    losses = [
        (record["step"], record["validation_loss"])
        for record in read_jsonl(path / "metrics.jsonl")
        if record.get("validation_loss") is not None
    ]
    if not losses:
        raise ValueError(f"{path}/metrics.jsonl: no validation_loss; the run was never evaluated")
    step, loss = losses[-1]
    tokens = step * recipe.batch_size * recipe.sequence_length
    params = spec.count(objective.param_spec(recipe))
    return fitting.runs_of([(step, {"params": params, "tokens": tokens, "loss": loss})], str(path))


def describe_fit(found: fitting.Runs, fit: fitting.Fit) -> dict[str, Any]:
    """The law's constants and exponents, each with its interval."""
    quantities: dict[str, Callable[[scaling.LossLaw], float]] = {
        name: operator.attrgetter(name) for name in ("E", "A", "B", "alpha", "beta")
    }
    quantities["a"] = lambda law: law.frontier().exponent
    values = {
        name: {"value": of(fit.law), "interval": fit.interval(of)}
        for name, of in quantities.items()
    }
    return {"runs": len(found), "error": fit.error, "share": 0.8, **values}


def finite(answer: Any) -> Any:
    """Replaces infinities and NaN by None, for JSON."""
    if isinstance(answer, dict):
        return {name: finite(value) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [finite(value) for value in answer]
    if isinstance(answer, float) and not math.isfinite(answer):
        return None
    return answer


def repeated(found: dict[str, Any]) -> list[str]:
    """Warnings about sources that are repeated too often."""
    return [
        f"data: {one['name']} is read {one['epochs']:.3g} times, which is worth "
        f"{one['worth'] / one['read']:.0%} of as much new text; up to 4 times costs little "
        "(Muennighoff et al. 2023)"
        for one in found["sources"]
        if one["epochs"] > planning.EPOCHS
    ]
