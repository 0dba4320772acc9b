"""Plans a training run in advance: size, data, memory, time and cost.

    python -m experiments.plan --recipe=llama3_8b --device=v5p --chips=64
    python -m experiments.plan --flops=1e22
    python -m experiments.plan --money=100000 --device=h100 --chips=64 --plot=isoflops.svg
    python -m experiments.plan --hours=720 --device=v6e --chips=256 --recipe=llama3_8b
    python -m experiments.plan --recipe=gpt2_small --prepared=data/mixture
    python -m experiments.plan --params=175e9 --tokens=300e9 --device=v100 --chips=1000 --days=34
    python -m experiments.plan --flops=1e20 --runs=ladder.csv --runs=runs/small

For a recipe (or --params and --tokens) it reports FLOPs (exact, and by the 6N rule), data at 20 to
100 tokens per parameter, memory per chip by item, time and cost. For a budget (--flops, --hours of
all chips, --money, or a target --loss) it reports the optimal size and tokens by Chinchilla's three
approaches and a scaling law of the loss, and the cost of smaller models trained for longer. Given
both, it compares the model with these. --runs fits the law to your own runs: params, tokens and
loss in a .csv or .jsonl file, or the folder of an evaluated run. --prepared compares the text in a
folder of `experiments.prepare`: how often each source is read, and what repeated text is worth.
"""

import dataclasses
import json
import pathlib
from typing import Any

from absl import flags as absl_flags

from experiments import flags, plan_tables, planner
from experiments.recipes import RECIPES
from llmjax import planning
from llmjax.data.mixture import MixtureConfig
from llmjax.pages import drawing
from llmjax.planning import cost, fitting, plots, scaling

ROOMY = 0.75  # planned share of a chip's memory that leaves room for the compiler

FLOPS = absl_flags.DEFINE_float("flops", None, "Budget: training FLOPs.")
HOURS = absl_flags.DEFINE_float("hours", None, "Budget: hours of all --chips together.")
MONEY = absl_flags.DEFINE_float("money", None, "Budget: US dollars.")
LOSS = absl_flags.DEFINE_float("loss", None, "Budget: what reaches this loss, in nats per token.")
PARAMS = absl_flags.DEFINE_float("params", None, "Parameters of a model without a recipe.")
TOKENS = absl_flags.DEFINE_float("tokens", None, "Tokens to train on; by default the recipe's.")
DEVICE = absl_flags.DEFINE_enum(
    "device", None, [chip.name for chip in planning.CHIPS], "Kind of chip."
)
CHIPS = absl_flags.DEFINE_integer("chips", 1, "Number of chips.")
UTILIZATION = absl_flags.DEFINE_float(
    "utilization", 0.4, "Share of the peak rate that training reaches (MFU)."
)
PRICE = absl_flags.DEFINE_float("price", None, "Dollars per chip-hour; by default the list price.")
DAYS = absl_flags.DEFINE_float("days", None, "Claimed duration of the training, to be checked.")
LAW = absl_flags.DEFINE_enum(
    "law",
    "besiroglu",
    list(planner.LAWS),
    "Scaling law: the corrected fit of Besiroglu et al. 2024, or Hoffmann et al. 2022, approach 3, "
    "with unrounded or printed constants.",
)
RUNS = absl_flags.DEFINE_multi_string(
    "runs", None, "Runs to fit the law to: .csv, .jsonl or a run folder. Repeat for each."
)
PREPARED = absl_flags.DEFINE_string(
    "prepared", None, "Folder of prepared data to compare; by default data.directory."
)
PLOT = absl_flags.DEFINE_string("plot", None, "File for isoFLOP curves, .svg or .png.")
AS_JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")

flags.define(RECIPES)


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    answer = plan()
    if AS_JSON.value:
        print(json.dumps(planner.finite(answer)))
    else:
        plan_tables.show(answer)


def plan() -> dict[str, Any]:
    """The answer to everything that the flags ask for.

    Raises:
        FlagError: the flags do not fit together.
    """
    _check()
    recipe = flags.resolve() if flags.FLAGS.recipe else None
    work = planner.work_of(recipe, PARAMS.value, TOKENS.value)
    cluster = _cluster()
    answer: dict[str, Any] = {"warnings": []}
    if cluster is not None:
        answer["cluster"] = _describe(cluster)
    if work is not None:
        answer["model"] = planner.describe(work)
        if work.flops is not None:
            answer["training"] = planner.spend(work.flops, cluster)
        answer["data"] = planner.data_needed(work, cluster)
        folder = PREPARED.value or (recipe.data.directory if recipe else "")
        if folder:
            settings = recipe.data.mixture if recipe else MixtureConfig()
            answer["supply"] = planner.supply(work, folder, settings)
            answer["warnings"] += planner.repeated(answer["supply"])
        if DAYS.value is not None and cluster is not None:
            answer["claim"] = planner.claim(work, cluster, DAYS.value)
            answer["warnings"] += _doubts(answer["claim"])
    if recipe is not None and cluster is not None:
        try:
            answer["memory"] = planner.memory(recipe, cluster)
            answer["warnings"] += _overflow(answer["memory"])
        except ValueError as error:
            answer["warnings"].append(f"memory is unknown: {error}")
    name, law, runs = planner.NAMES[LAW.value], planner.LAWS[LAW.value], None
    if RUNS.value:
        runs, fit = planner.fit_runs(RUNS.value)
        name, law = "your runs", fit.law
        answer["fit"] = planner.describe_fit(runs, fit)
    answer["law"] = name
    budget = _budget(cluster, law)
    if budget is not None:
        optima = planner.optima(budget, name, law)
        answer["budget"] = planner.spend(budget, cluster) | {"optima": optima}
        answer["overtraining"] = planner.overtraining(budget, law, work.active if work else None)
    _plot(law, budget or (work.flops if work else None), runs)
    return answer


def _check() -> None:
    """Checks the flags on their own."""
    budgets = (FLOPS, HOURS, MONEY, LOSS)
    positive = (*budgets, PARAMS, TOKENS, DAYS, PRICE)
    for flag in positive:
        if flag.value is not None and not 0 < flag.value < float("inf"):
            raise flags.FlagError(f"--{flag.name}={flag.value}: must be above 0, and finite")
    given = [flag.name for flag in budgets if flag.value is not None]
    if len(given) > 1:
        raise flags.FlagError(f"--{' and --'.join(given)}: give only one budget")
    if flags.FLAGS.recipe and PARAMS.value:
        raise flags.FlagError("--params is for a model without a recipe: leave out one of them")
    if not (flags.FLAGS.recipe or PARAMS.value or given or RUNS.value):
        raise flags.FlagError(
            "nothing to plan: give --recipe, --params, --flops, --hours, --money, --loss or --runs"
        )
    given_fields = flags.changed()
    if given_fields and not flags.FLAGS.recipe:
        raise flags.FlagError(f"--{given_fields[0]} changes a recipe: give --recipe too")
    needing = [flag for flag in (HOURS, MONEY, DAYS, PRICE) if flag.value is not None]
    needing += [flag for flag in (CHIPS, UTILIZATION) if flag.present]
    if needing and not DEVICE.value:
        raise flags.FlagError(f"--{needing[0].name} depends on the chip: give --device too")
    of_training = {"days": DAYS.value, "prepared": PREPARED.value, "tokens": TOKENS.value}
    if LAW.present and RUNS.value:
        raise flags.FlagError(f"--law={LAW.value}: --runs fits a law; leave out one of them")
    for name, value in of_training.items():
        if value is not None and not (flags.FLAGS.recipe or PARAMS.value):
            raise flags.FlagError(
                f"--{name} is about a training run: give --recipe, or --params and --tokens"
            )


def _cluster() -> cost.Cluster | None:
    if not DEVICE.value:
        return None
    listed = planning.prices().get(DEVICE.value)
    dollars = PRICE.value or (listed.dollars if listed else None)
    try:
        return cost.Cluster(planning.chip(DEVICE.value), CHIPS.value, UTILIZATION.value, dollars)
    except ValueError as error:
        raise flags.FlagError(f"--{error}") from error


def _describe(cluster: cost.Cluster) -> dict[str, Any]:
    price: dict[str, Any] | None = None
    if PRICE.value:
        price = {"dollars": PRICE.value, "offer": "", "date": "", "source": ""}
    elif cluster.dollars is not None:
        price = dataclasses.asdict(planning.prices()[cluster.chip.name])
    return {
        "chip": cluster.chip.name,
        "chips": cluster.count,
        "utilization": cluster.utilization,
        "flops": cluster.chip.flops,
        "memory": cluster.chip.memory,
        "price": price,
    }


def _budget(cluster: cost.Cluster | None, law: scaling.LossLaw) -> float | None:
    """The budget in FLOPs."""
    if LOSS.value is not None:
        try:
            return law.cheapest(LOSS.value).flops
        except ValueError as error:
            raise flags.FlagError(f"--{error}") from error
    if HOURS.value is not None and cluster is not None:
        return cluster.flops_in(HOURS.value)
    if MONEY.value is not None and cluster is not None:
        if cluster.dollars is None:
            raise flags.FlagError(
                f"--money: the price of {cluster.chip.name} is unknown: give --price"
            )
        return cluster.flops_for(MONEY.value)
    return FLOPS.value


def _doubts(claim: dict[str, Any]) -> list[str]:
    if claim["believable"]:
        return []
    needed, days = claim["utilization"], claim["days"]
    if needed > 1:
        return [f"--days={days:g}: impossible, it needs {needed:.0%} of the chips' peak"]
    return [
        f"--days={days:g}: needs {needed:.0%} of the chips' peak, but large runs reach 30 to 60 %"
    ]


def _overflow(memory: dict[str, Any]) -> list[str]:
    times = memory["total"] / memory["available"]
    if times <= ROOMY:
        return []
    if times <= 1:
        return ["memory: tight, as compilers allocate 5 to 34 % more than is in use at once"]
    help_ = "a larger mesh.fsdp or mesh.tensor, a larger accumulate, or model.remat=full"
    return [f"memory: {times:.1f} times what there is; try {help_}"]


def _plot(law: scaling.LossLaw, flops: float | None, runs: fitting.Runs | None) -> None:
    if not PLOT.value:
        return
    if flops is None and runs is not None:
        flops = float((scaling.FLOPS_PER_PARAM * runs.params * runs.tokens).max())
    if flops is None:
        raise flags.FlagError("--plot: there is no budget to draw curves around; give --flops")
    budgets = [share * flops for share in planner.ISOFLOPS]
    try:
        drawing.write(plots.isoflops(law, budgets, runs), pathlib.Path(PLOT.value))
    except (ValueError, OSError) as error:
        raise flags.FlagError(f"--plot={PLOT.value}: {error}") from error


if __name__ == "__main__":
    flags.run(main)
