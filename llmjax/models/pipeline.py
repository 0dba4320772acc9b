"""Layers in stages, each on devices of its own, through which micro-batches follow each other.

One round is GPipe's schedule (Huang et al. 2019). With V rounds a stage has V groups of layers, and
micro-batches go around the ring of P stages V times, P of them at a time (Narayanan et al. 2021,
section 2.2): the time to fill and to drain the pipeline is that of fewer layers. In step t, stage p
works on item n = t - p of V·M, whose place says which micro-batch and which round it is:

    n = chunk · P·V + round · P + place        micro-batch = chunk · P + place

The item of the next round then arrives at the first stage just when its turn comes. In
V·M + P - 1 steps each stage works in V·M; in the others it computes what nobody reads.

Between steps every stage holds M/P micro-batches of the stream, before they enter and after they
leave: those of a chunk move one stage towards the first in each step, which swaps one that has come
out for one that goes in. So no stage has more of the stream than another, and the embedding and
the head, which are outside, are computed by all stages, each for its own rows.
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
    """P, V and M of the head of this file."""

    stages: int
    rounds: int
    microbatches: int

    @property
    def chunk(self) -> int:
        """Steps in which P micro-batches pass a stage in all rounds."""
        return self.stages * self.rounds

    @property
    def items(self) -> int:
        """V·M, the steps in which a stage works."""
        return self.rounds * self.microbatches

    @property
    def steps(self) -> int:
        """All of them."""
        return self.items + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of the steps in which a stage waits."""
        return 1 - self.items / self.steps


def schedule(config: Pipeline, rows: int, layers: int, period: int = 1) -> Schedule:
    """That of a batch on the current mesh.

    Args:
        config: the wishes.
        rows: B.
        layers: L.
        period: of the pattern of layers.

    Raises:
        ValueError: the layers or the rows do not divide.
    """
    stages = mesh.size("layers")
    groups = stages * config.rounds
    if layers % (groups * period):
        patterns = f" of whole patterns of {period}" if period > 1 else ""
        raise ValueError(
            f"{layers} layers do not divide into {groups} equal groups{patterns} "
            f"(mesh.stage={stages} × model.pipeline.rounds={config.rounds}): choose stages and "
            "rounds that do"
        )
    # A micro-batch has a row for every device that shares the batch of a stage.
    most = rows // (mesh.size("batch") // stages)
    fits = [m for m in range(stages, most + 1, stages) if most % m == 0]
    wanted = config.microbatches
    if not fits:
        raise ValueError(
            f"a batch of {rows} rows does not divide into micro-batches for {stages} stages "
            f"(mesh.stage) of {mesh.size('batch') // stages} devices that share each: choose a "
            "batch_size that their product divides"
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
        body: (x [b, S, D], layers [k, ...], rows [b, ...], shared) to the activations behind a
            group of layers, and sums over its rows, stacked by layer.
        x: activations [B, S, D].
        layers: a tree of arrays [L, ...].
        rows: a tree of integers [B, ...] or [B, S, ...], what the body knows of the rows.
        shared: a tree of arrays that all layers read.
        config: how.
        period: of the pattern of layers.

    Returns:
        The last activations, and the sums over all rows, by stage.

    Raises:
        ValueError: as `schedule`.
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
    """What one stage does."""
    here = jax.lax.axis_index(AXIS)
    columns = plan.microbatches // plan.stages
    positions = stream_axes(x.shape[1])[1]
    stream = _cut(x, columns, positions)
    # A chunk comes out while the next one goes in, and takes its place.
    stream = jnp.concatenate([stream, jnp.zeros_like(stream[:1])])
    groups = jax.tree.map(lambda leaf: _deal(leaf, plan), layers)
    # Every stage works on all rows: those of all stages, one behind the other.
    gather = functools.partial(jax.lax.all_gather, axis_name=AXIS, tiled=True)
    rows = jax.tree.map(lambda leaf: gather(_cut(leaf, columns, "sequence")), rows)

    def swap(time, passed, stream):
        """At the first stage, what has come out for what goes in; then moves the column on."""
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
        # A group that is the same in all steps is kept for the backward pass once.
        pick = (lambda leaf: leaf[0]) if plan.rounds == 1 else functools.partial(_at, index=turn)
        x, sums = body(x, jax.tree.map(pick, groups), own, shared)
        sums = jax.tree.map(lambda found: jnp.where(live, found, 0), sums)
        return (_move(x, plan, 1), stream), sums

    carry, sums = jax.lax.scan(step, (stream[-1], stream), jnp.arange(plan.steps))
    _, stream = swap(plan.steps, *carry)
    return _join(stream[1:], positions), jax.tree.map(lambda found: jnp.sum(found, axis=0), sums)


def _move(x, plan: Schedule, by: int):
    """To the next stage, or to the one before; around the ring."""
    ring = [(stage, (stage + by) % plan.stages) for stage in range(plan.stages)]
    return jax.lax.ppermute(x, AXIS, ring)


def _at(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _cut(x, columns: int, positions: str | None):
    """A stage's rows [B/P, ...] as micro-batches [columns, b, ...], each over all its devices."""
    axes = ("batch", None, positions, None)[: x.ndim + 1]
    split = mesh.sharded(jnp.reshape, axes)
    return jnp.swapaxes(split(x, (x.shape[0] // columns, columns, *x.shape[1:])), 0, 1)


def _join(x, positions: str | None):
    """Inverts `_cut`."""
    columns, size = x.shape[:2]
    merge = mesh.sharded(jnp.reshape, ("batch", positions, None))
    return merge(jnp.swapaxes(x, 0, 1), (size * columns, *x.shape[2:]))


def _deal(leaf, plan: Schedule):
    """The groups of layers that a stage works with, [V, k, ...], of the layers [V·k, ...] it holds.

    Parameters lie in the order of the layers, whatever the schedule. So group g, which stage g // V
    holds, has to get to stage g mod P, for its round g // P: once a step, V groups each.
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
    """V turns, in each of which every stage sends one group and gets one: their numbers, by stage.

    Stage p holds the groups from p·V on, so stages p and p + P/d, d being gcd(P, V), have groups
    for the same d stages in a row: in one turn they send different ones of these.
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
    """Layers with the integers of PRNG keys in their place, and what makes keys of them again."""

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
