"""A lower bound for the communication of a training step, by mesh axis."""

import math
from collections.abc import Mapping

import jax

from llmjax import mesh, models, tree
from llmjax.models.pipeline import Schedule
from llmjax.planning.program import Amounts, Collective
from llmjax.spec import Param, is_param
from llmjax.train.zero import is_held

WIDE = 4  # bytes of a float32
ALONE = Schedule(1, 1, 1)
# How often a layer gathers or scatters activations, by remat policy.
AGAIN = {"none": 8, "dots": 10, "full": 11}


def least_traffic(
    config: models.ModelConfig,
    sizes: Mapping[str, int],
    rows: int,
    length: int,
    *,
    accumulate: int = 1,
    schedule: Schedule = ALONE,
    zero: int = 3,
    itemsize: int = 2,
) -> dict[str, float]:
    """Bytes that one chip sends in a training step of a decoder, by mesh axis of size above 1.

    Assumptions, for each of the `accumulate` parts of a batch:

    - fsdp, context and expert: weights are gathered in compute precision once for the forward and
      once for the backward pass, and gradients are scattered once in that precision. The head,
      whose passes are adjacent, and tables that are only looked up are gathered once. Gradients of
      replicated parameters (norm scales) are summed in float32. ZeRO stages 1 and 2 gather the
      layer weights once per step, and stage 1 scatters their gradients once per step.
    - data: gradients are summed once per step, in compute precision.
    - tensor: a layer gathers activations and scatters sums twice in each direction (Korthikanti
      et al. 2022, section 4.2.2); embedding and head do so once each. Recomputation gathers again
      (`model.remat`), and "full" also repeats the sums of attention.
    - expert: in addition, k copies of each token travel to an expert and back in both directions,
      spread evenly; remat "full" repeats the forward exchange.
    - context: in addition, on a ring of C, keys and values make C - 1 hops for each pass, of which
      remat "full" adds one that shares its first hop with the backward pass. Their gradients make
      C - 1 hops in float32, and return in compute precision. Windows are ignored.
    - stage: each micro-batch crosses from stage to stage in every round, and the queue of waiting
      and finished ones moves whenever one enters or leaves, in both directions. Layer weights are
      gathered and scattered for each micro-batch; embedding and head, which are split over stages,
      once. Steps in the bubble send as much as the others.

    Args:
        config: the model's configuration.
        sizes: sizes of the mesh axes.
        rows: B, over all chips.
        length: S.
        accumulate: parts that the batch is cut into.
        schedule: schedule of the pipeline.
        zero: ZeRO stage.
        itemsize: bytes of a number in compute precision.
    """
    total = {axis: 0.0 for axis, size in sizes.items() if size > 1}
    tokens = rows * length / _split(("batch", "sequence"), sizes)
    for path, param in _declared(config):
        once = path.startswith("head") or (path == "embedding" and not config.tied)
        times = accumulate * (schedule.steps / schedule.rounds if "layers" in param.axes else 1)
        passes = _passes(zero if is_held(param) else 3, times, 1 if once else 2)
        for axis, moved in _weights(param, sizes, passes * itemsize, times).items():
            total[axis] += moved
        if "data" in total:
            of_chip = math.prod(param.shape) / _split(param.axes, sizes)
            total["data"] += 2 * _others(sizes["data"]) * of_chip * itemsize
    for axis, sent in _activations(config, sizes, tokens, schedule, itemsize).items():
        if axis in total:
            total[axis] += sent
    return total


def _declared(config: models.ModelConfig) -> list[tuple[str, Param]]:
    """The parameters with their paths."""
    spec = models.spec(config)
    paths = tree.paths(spec, is_leaf=is_param)
    return list(zip(paths, jax.tree.leaves(spec, is_leaf=is_param), strict=True))


def _passes(zero: int, times: float, gathers: int) -> float:
    """How often a weight is gathered or its gradient scattered in a step of `times` parts."""
    return {1: 2, 2: 1 + times, 3: (gathers + 1) * times}[zero]


def _activations(
    config, sizes, tokens: float, schedule: Schedule, itemsize: int
) -> dict[str, float]:
    """Bytes of activations that a chip sends, by axis; axes of size 1 may occur."""
    layers, ring = config.num_layers * schedule.steps / schedule.items, sizes.get("context", 1)
    states = tokens * config.embed_dim * itemsize
    # In micro-batches: one to the next stage in each step, one in the queue for each that enters
    # or leaves, where the last P leave after all have entered.
    moves = schedule.steps + schedule.microbatches + schedule.stages
    # A stage sees the tokens of all stages.
    microbatch = schedule.stages * states / schedule.microbatches
    copies = config.experts.per_token if config.experts.count else 0
    exchanges = 6 if config.remat == "full" else 4
    pairs = 2 * tokens * config.kv_heads * config.channels / sizes.get("tensor", 1)
    visits = 3 * (ring - 1) - 1 if config.remat == "full" else 2 * (ring - 1)
    home = 1  # the last hop of gradients, in compute precision
    return {
        "tensor": (AGAIN[config.remat] * layers + 4) * states * _others(sizes.get("tensor", 1)),
        "expert": exchanges * layers * copies * states * _others(sizes.get("expert", 1)),
        "context": layers * pairs * ((visits + home) * itemsize + (ring - 1) * WIDE),
        "stage": 2 * moves * microbatch / sizes.get("tensor", 1),
    }


def by_axis(moved: Mapping[Collective, Amounts], sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes that one chip sends, by axis; `_shares` splits collectives over several axes."""
    total = {axis: 0.0 for axis, size in sizes.items() if size > 1}
    for collective, amounts in moved.items():
        shares = _shares(collective.axes or ("within a chip",), sizes)
        whole = sum(shares.values()) or 1.0
        for axis, share in shares.items():
            total[axis] = total.get(axis, 0.0) + amounts.wire * share / whole
    return total


def _shares(axes: tuple[str, ...], sizes: Mapping[str, int]) -> dict[str, float]:
    """The fraction of an array that a chip sends over each axis to gather or scatter it over all.

    The collective counts as one over the last axis followed by one over the axis before it, on the
    part that remains; the total is the same.
    """
    part, shares = 1.0, {}
    for axis in reversed(axes):
        size = sizes.get(axis, 1)
        shares[axis] = part * _others(size)
        part /= size
    return shares


def _weights(
    param: Param, sizes: Mapping[str, int], itemsize: float, times: float
) -> dict[str, float]:
    """Bytes sent to gather a weight and scatter its gradient, or to sum a replicated gradient."""
    ours = [axis for axis in param.axes if axis in ("embed", "outer_embed", "expert_embed")]
    rules = mesh.RULES[ours[0] if ours else "embed"]
    names = tuple(name for name in rules if sizes.get(name, 1) > 1)
    of_group = math.prod(param.shape) / _split(param.axes, {**sizes, **dict.fromkeys(names, 1)})
    moved = of_group * (itemsize if ours else 2 * WIDE * times)
    # XLA joins the parts of a weight over the last axis first, while they are small.
    order = tuple(reversed(names)) if ours else names
    return {axis: moved * share for axis, share in _shares(order, sizes).items()}


def _split(axes: tuple[str | None, ...], sizes: Mapping[str, int]) -> int:
    """The number of devices that an array with these logical axes is split over."""
    names = [name for axis in axes if axis is not None for name in mesh.RULES[axis]]
    return math.prod(sizes.get(name, 1) for name in names)


def _others(size: int) -> float:
    return (size - 1) / size
