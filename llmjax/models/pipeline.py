"""Pipeline parallelism: stages of layers, each on its own devices, process micro-batches in turn.

One round is GPipe's schedule (Huang et al. 2019). With V rounds a stage has V groups of layers, and
micro-batches go around the ring of P stages V times, P of them at a time (Narayanan et al. 2021,
section 2.2): filling and draining the pipeline takes the time of fewer layers. In step t, stage p
works on item n = t - p of V·M, which encodes its round and micro-batch:

    n = chunk · P·V + round · P + place        micro-batch = chunk · P + place

An item of the next round thus arrives at the first stage exactly when it is due. Of the V·M + P - 1
steps, each stage works in V·M; the results of its other steps are discarded.

Between steps every stage holds M/P micro-batches of the stream, before they enter and after they
leave: those of a chunk move one stage towards the first in each step, and the first stage swaps a
finished micro-batch for the next one. So all stages hold equal shares of the stream. The embedding
and the head are outside the pipeline: every stage computes them for its own rows.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.models.layers import stream_axes
from llmjax.models.options import Pipeline
from llmjax.parts import over_axes

AXIS = "stage"


class Schedule(NamedTuple):
    """P, V and M of the module docstring."""

    stages: int
    rounds: int
    microbatches: int

    @property
    def chunk(self) -> int:
        """Steps in which P micro-batches pass a stage in all rounds, P·V."""
        return self.stages * self.rounds

    @property
    def items(self) -> int:
        """V·M, the steps in which a stage works."""
        return self.rounds * self.microbatches

    @property
    def steps(self) -> int:
        """All steps, including those in which a stage is idle."""
        return self.items + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of steps in which a stage is idle."""
        return 1 - self.items / self.steps


def schedule(config: Pipeline, rows: int, layers: int, period: int = 1) -> Schedule:
    """The schedule of a batch on the current mesh.

    Args:
        config: pipeline options.
        rows: B.
        layers: L.
        period: length of the layers' pattern.

    Raises:
        ValueError: the layers or the rows do not divide evenly.
    """
    stages = mesh.size("layers")
    groups = stages * config.rounds
    if layers % (groups * period):
        patterns = f" of whole patterns of {period}" if period > 1 else ""
        raise ValueError(
            f"{layers} layers do not divide into {groups} equal groups{patterns} "
            f"(mesh.stage={stages} × model.pipeline.rounds={config.rounds}): choose stages and "
            "rounds that divide them"
        )
    # A micro-batch needs a row for every data-parallel device of a stage.
    most = rows // (mesh.size("batch") // stages)
    fits = [m for m in range(stages, most + 1, stages) if most % m == 0]
    wanted = config.microbatches
    if not fits:
        raise ValueError(
            f"a batch of {rows} rows does not divide into micro-batches for {stages} stages "
            f"(mesh.stage) of {mesh.size('batch') // stages} data-parallel devices: choose a "
            "batch_size that is a multiple of the product"
        )
    if wanted and wanted not in fits:
        raise ValueError(
            f"model.pipeline.microbatches={wanted}: a batch of {rows} rows divides into {fits}, "
            f"multiples of mesh.stage={stages}"
        )
    return Schedule(stages, config.rounds, wanted or max(m for m in fits if m <= 4 * stages))


def run(
    body: Callable[..., tuple[jax.Array, Any]],
    x: jax.Array,
    layers: Any,
    rows: Any,
    shared: Any,
    config: Pipeline,
    period: int = 1,
) -> tuple[jax.Array, Any]:
    """Applies all layers, in the stages of the current mesh.

    Args:
        body: (x [b, S, D], layers [k, ...], rows [b, ...], shared) to the activations after a
            group of layers, and sums over its rows, stacked by layer.
        x: activations [B, S, D].
        layers: a tree of arrays [L, ...].
        rows: a tree of integers [B, ...] or [B, S, ...], per-row inputs of the body.
        shared: a tree of arrays that all layers read.
        config: pipeline options.
        period: length of the layers' pattern.

    Returns:
        The last activations, and the sums over all rows, by stage.

    Raises:
        ValueError: as in `schedule`.
    """
    plan = schedule(config, x.shape[0], jax.tree.leaves(layers)[0].shape[0], period)
    layers, restore = _without_keys(layers)

    def stage(x, layers, rows, shared):
        return _stage(
            lambda x, group, *rest: body(x, restore(group), *rest), plan, x, layers, rows, shared
        )

    here, everywhere = jax.P(AXIS), jax.P()
    specs = (here, here, here, everywhere)
    return over_axes(stage, specs, (here, here), {AXIS})(x, layers, rows, shared)


def _stage(body, plan: Schedule, x, layers, rows, shared):
    """The program of one stage."""
    here = jax.lax.axis_index(AXIS)
    columns = plan.microbatches // plan.stages
    positions = stream_axes(x.shape[1])[1]
    stream = _cut(x, columns, positions)
    # A finished chunk takes the place of the next one as that enters.
    stream = jnp.concatenate([stream, jnp.zeros_like(stream[:1])])
    groups = jax.tree.map(lambda leaf: _deal(leaf, plan), layers)
    # Every micro-batch passes every stage, so each needs the rows of all stages.
    gather = functools.partial(jax.lax.all_gather, axis_name=AXIS, tiled=True)
    rows = jax.tree.map(lambda leaf: gather(_cut(leaf, columns, "sequence")), rows)

    def swap(time, passed, stream):
        """Swaps the finished for the entering micro-batch at stage 0, then moves the column on."""
        chunk = time // plan.chunk
        column = _at(stream, chunk)
        entering = jnp.where(here == 0, column, passed)
        column = _move(jnp.where(here == 0, passed, column), plan, -1)
        return entering, jax.lax.dynamic_update_index_in_dim(stream, column, chunk, 0)

    def step(carry, time):
        x, stream = jax.lax.cond(
            time % plan.chunk < plan.stages, swap, lambda _, *same: same, time, *carry
        )
        item = time - here
        live = (item >= 0) & (item < plan.items)
        chunk, rest = jnp.divmod(jnp.clip(item, 0, plan.items - 1), plan.chunk)
        turn, place = jnp.divmod(rest, plan.stages)
        own = jax.tree.map(lambda leaf: _at(leaf, place * columns + chunk), rows)
        # With one round, an index per step would keep a copy of the group for every step.
        pick = (lambda leaf: leaf[0]) if plan.rounds == 1 else functools.partial(_at, index=turn)
        x, sums = body(x, jax.tree.map(pick, groups), own, shared)
        sums = jax.tree.map(lambda found: jnp.where(live, found, 0), sums)
        return (_move(x, plan, 1), stream), sums

    carry, sums = jax.lax.scan(step, (stream[-1], stream), jnp.arange(plan.steps))
    _, stream = swap(plan.steps, *carry)
    return _join(stream[1:], positions), jax.tree.map(lambda found: jnp.sum(found, axis=0), sums)


def _move(x, plan: Schedule, by: int):
    """Sends x to the next stage of the ring (by = 1) or the previous one (by = -1)."""
    ring = [(stage, (stage + by) % plan.stages) for stage in range(plan.stages)]
    return jax.lax.ppermute(x, AXIS, ring)


def _at(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _cut(x, columns: int, positions: str | None):
    """A stage's rows [B/P, ...] as micro-batches [columns, b, ...], each on all its devices."""
    axes = ("batch", None, positions, None)[: x.ndim + 1]
    split = mesh.sharded(jnp.reshape, axes)
    return jnp.swapaxes(split(x, (x.shape[0] // columns, columns, *x.shape[1:])), 0, 1)


def _join(x, positions: str | None):
    """Inverts `_cut`."""
    columns, size = x.shape[:2]
    merge = mesh.sharded(jnp.reshape, ("batch", positions, None))
    return merge(jnp.swapaxes(x, 0, 1), (size * columns, *x.shape[2:]))


def _deal(leaf, plan: Schedule):
    """Exchanges the layers a stage holds, [V·k, ...], for the groups it runs, [V, k, ...].

    Parameters are stored in layer order, whatever the schedule. So group g, held by stage g // V,
    must be sent to stage g mod P for its round g // P: V groups per stage, once a step.
    """
    held = leaf.reshape(plan.rounds, -1, *leaf.shape[1:])
    if plan.rounds == 1:
        return held
    here, dealt = jax.lax.axis_index(AXIS), held
    for turn in deals(plan):
        sent, got = zip(*turn, strict=True)
        slots = jnp.asarray([group % plan.rounds for group in sent])
        moves = [(group // plan.rounds, group % plan.stages) for group in sent]
        rounds = jnp.asarray([group // plan.stages for group in got])
        part = jax.lax.ppermute(_at(held, slots[here]), AXIS, moves)
        dealt = jax.lax.dynamic_update_index_in_dim(dealt, part, rounds[here], 0)
    return dealt


def deals(plan: Schedule) -> list[list[tuple[int, int]]]:
    """V turns in which every stage sends one group and receives one: (sent, received) by stage.

    Stage p holds the groups from p·V on. With d = gcd(P, V), stages p and p + P/d hold groups for
    the same d stages in a row: in one turn they send to different ones of these.
    """
    stages, rounds = plan.stages, plan.rounds
    common = math.gcd(stages, rounds)
    turns = []
    for turn in range(rounds):
        sent = []
        for stage in range(stages):
            ahead = stage // (stages // common)
            slot = turn - turn % common + (turn + ahead) % common
            sent.append(stage * rounds + slot)
        got = sorted(sent, key=lambda group: group % stages)
        turns.append(list(zip(sent, got, strict=True)))
    return turns


def _without_keys(layers: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Layers with PRNG keys replaced by their integers, and a function that restores the keys."""

    def is_key(leaf):
        return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    kinds = jax.tree.map(lambda leaf: jax.random.key_impl(leaf) if is_key(leaf) else None, layers)

    def plain(leaf):
        return mesh.place(jax.random.key_data(leaf), ("layers", None)) if is_key(leaf) else leaf

    def restore(plain):
        return jax.tree.map(
            lambda leaf, kind: leaf if kind is None else jax.random.wrap_key_data(leaf, impl=kind),
            plain,
            kinds,
            is_leaf=lambda leaf: leaf is None,
        )

    return jax.tree.map(plain, layers), restore
