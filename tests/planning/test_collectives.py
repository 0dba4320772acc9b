"""Collectives of programs whose traffic is known, by kind, mesh axis and bytes."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llmjax import mesh, models, objectives, optim, planning, train
from llmjax.models.pipeline import Schedule
from llmjax.planning.program.groups import crossed_axes, replica_groups

AXES = {"data": 2, "fsdp": 2, "tensor": 2}
EVERY = P(tuple(AXES))
ROUNDS, ROWS, WIDTH = 5, 64, 32
BYTES = 4 * ROWS * WIDTH  # of one device's part

OPERATIONS = {
    "all-gather": lambda x, axis: jax.lax.all_gather(x, axis, tiled=True)[::2],
    "all-reduce": lambda x, axis: jax.lax.pcast(jax.lax.psum(x, axis), axis, to="varying"),
    "reduce-scatter": lambda x, axis: jnp.tile(jax.lax.psum_scatter(x, axis, tiled=True), (2, 1)),
    "all-to-all": lambda x, axis: jax.lax.all_to_all(x, axis, 0, 0, tiled=True),
    "collective-permute": lambda x, axis: jax.lax.ppermute(x, axis, [(0, 1), (1, 0)]),
}


def compiled_loop(kind: str, axis) -> str:
    """A program that runs one collective so many times."""
    made = jax.make_mesh(tuple(AXES.values()), tuple(AXES))

    def one(x, _):
        return jnp.sin(OPERATIONS[kind](x, axis)), None

    def run(x):
        return jax.lax.scan(one, x, None, length=ROUNDS)[0]

    mapped = jax.shard_map(run, mesh=made, in_specs=EVERY, out_specs=EVERY)
    sharding = NamedSharding(made, EVERY)
    x = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32, sharding=sharding)
    return jax.jit(mapped).lower(x).compile().as_text()


@pytest.mark.parametrize(
    ("kind", "axis", "bytes_", "wire"),
    [
        ("all-gather", "fsdp", 2 * BYTES, BYTES),
        ("all-reduce", "fsdp", BYTES, BYTES),
        ("all-reduce", ("data", "tensor"), BYTES, 2 * 3 / 4 * BYTES),
        ("reduce-scatter", "tensor", BYTES, BYTES / 2),
        ("all-to-all", "data", BYTES, BYTES / 2),
        ("collective-permute", "tensor", BYTES, BYTES),
    ],
)
def test_a_collective_counts_as_often_as_its_loop_runs(
    optimizing_compiler, kind, axis, bytes_, wire
):
    (found,) = planning.collectives(compiled_loop(kind, axis), AXES).items()
    collective, amounts = found
    axes = (axis,) if isinstance(axis, str) else axis
    assert (collective.kind, collective.axes) == (kind, axes)
    assert amounts == planning.Amounts(ROUNDS, ROUNDS * bytes_, ROUNDS * wire)


@pytest.mark.parametrize(
    ("line", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x=y", [(0, 1), (2, 3)]),
        ("replica_groups={}, x=y", [(0, 1, 2, 3)]),
        ("replica_groups=[2,2]<=[4], x=y", [(0, 1), (2, 3)]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1), x=y", [(0, 2), (1, 3), (4, 6), (5, 7)]),
        ("source_target_pairs={{0,2},{2,0}}, x=y", [(0, 2), (2, 0)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x=y", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=y", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [(0, 2), (1, 3), (4, 6), (5, 7)]),
    ],
)
def test_groups_are_read_in_every_notation(line, groups):
    assert replica_groups(line, 4) == groups


def test_an_unknown_notation_is_told():
    with pytest.raises(ValueError, match="unknown notation"):
        replica_groups("replica_groups=something", 4)


def test_axes_are_those_along_which_a_group_differs():
    sizes = {"data": 2, "fsdp": 4}
    assert crossed_axes([(0, 1, 2, 3)], sizes) == ("fsdp",)
    assert crossed_axes([(0, 4), (1, 5)], sizes) == ("data",)
    assert crossed_axes([tuple(range(8))], sizes) == ("data", "fsdp")
    assert crossed_axes([(3,)], sizes) == ()


# As libtpu prints a sum of which each chip keeps a slice, and a gather in pieces, shortened.
SCATTER = pathlib.Path(__file__).with_name("scatter.hlo").read_text()
PIECES = pathlib.Path(__file__).with_name("pieces.hlo").read_text()


def test_a_sum_that_is_sliced_in_one_operation_is_a_scatter():
    (found,) = planning.collectives(SCATTER, {"fsdp": 4}).items()
    size = 2 * 64 * 16
    assert found == (
        planning.Collective("reduce-scatter", ("fsdp",), 4, "jit(f)/dot"),
        planning.Amounts(1, size, 3 / 4 * size),
    )


def test_a_collective_in_pieces_counts_once():
    (amounts,) = planning.collectives(PIECES, {"fsdp": 4}).values()
    assert amounts == planning.Amounts(1, 2 * 64 * 64, 2 * 48 * 64)


def test_several_axes_send_as_much_as_one_after_the_other():
    """2·15/16 of an array over 4 × 4 devices: 2·3/4 over one axis, then of a quarter."""
    moved = {planning.Collective("all-reduce", ("data", "fsdp"), 16): planning.Amounts(1, 16, 30)}
    sent = planning.by_axis(moved, {"data": 4, "fsdp": 4, "tensor": 1})
    assert sent == pytest.approx({"fsdp": 24.0, "data": 6.0})


@functools.cache
def step_text(sizes: mesh.MeshConfig, model: models.ModelConfig) -> str:
    spec = models.spec(model)
    optimizer = optim.make(optim.OptimizerConfig(schedule="constant"), spec, 10)
    with jax.set_mesh(mesh.make_mesh(sizes)):
        state = train.abstract_state(spec, optimizer)
        tokens = jax.ShapeDtypeStruct(
            (16, 64), "int32", sharding=mesh.named_sharding(("batch", "sequence"))
        )
        batch = {"tokens": tokens, "targets": tokens}
        return (
            train.make_step(objectives.clm(model), optimizer)
            .lower(state, batch)
            .compile()
            .as_text()
        )


DECODER = models.llama(
    vocab_size=256,
    num_layers=4,
    embed_dim=64,
    num_heads=4,
    mlp_dim=256,
    max_length=64,
    remat="full",
)


def test_a_step_scatters_gradients_of_what_fsdp_splits(optimizing_compiler):
    """A decoder's step over 8 devices sends 1.05 times the least, or less."""
    model = DECODER
    sizes = {"data": 1, "fsdp": 8, "tensor": 1, "expert": 1}
    moved = planning.collectives(step_text(mesh.MeshConfig(**sizes), model), sizes)
    weight = 4 * 64 * 64  # bytes of the smallest
    for one, amounts in moved.items():
        if "while" in one.source and one.kind == "all-reduce":
            assert amounts.bytes / amounts.calls < weight, one
    least = planning.least_traffic(model, sizes, 16, 64, itemsize=4)
    assert planning.by_axis(moved, sizes)["fsdp"] <= 1.05 * least["fsdp"]


def test_stages_gather_no_more_than_their_products_need(optimizing_compiler):
    """What enters and leaves a pipeline stays split over fsdp, what the backward pass keeps too."""
    model = dataclasses.replace(DECODER, pipeline=models.Pipeline(microbatches=2))
    sizes = {"stage": 2, "data": 1, "fsdp": 4}
    moved = planning.collectives(step_text(mesh.MeshConfig(**sizes), model), sizes)
    least = planning.least_traffic(model, sizes, 16, 64, schedule=Schedule(2, 1, 2), itemsize=4)
    assert planning.by_axis(moved, sizes)["fsdp"] <= 1.05 * least["fsdp"]


def test_the_least_traffic_of_a_plain_layer():
    """By hand: fsdp=4 gathers twice and scatters once 2-byte weights; tensor=2 sums activations."""
    model = models.llama(
        vocab_size=16, num_layers=1, embed_dim=8, num_heads=1, mlp_dim=32, max_length=4
    )
    matrices = 4 * 8 * 8 + 3 * 8 * 32  # attention and MLP
    norms, tables = 3 * 8, 2 * 16 * 8  # of tokens, and the head
    least = planning.least_traffic(model, {"data": 1, "fsdp": 4, "tensor": 1}, 8, 4)
    arrays = 2 * (3 * matrices + 2 * tables) + 2 * 4 * norms
    assert least == pytest.approx({"fsdp": 3 / 4 * arrays})
    least = planning.least_traffic(model, {"data": 1, "fsdp": 1, "tensor": 2}, 8, 4)
    assert least == pytest.approx({"tensor": 12 * (8 * 4 * 8) * 2 / 2})


def test_the_least_traffic_of_a_ring_and_of_stages():
    """By hand: 2 layers, 8 rows of 16 tokens, keys and values of one head of 8 channels."""
    model = models.llama(
        vocab_size=16, num_layers=2, embed_dim=8, num_heads=1, mlp_dim=32, max_length=16
    )
    least = planning.least_traffic(model, {"context": 4}, 8, 16)
    tokens, pair = 8 * 16 // 4, 2 * 8
    # In 2 bytes there and back 3 hops each; gradients in 4 bytes, and one hop home in 2.
    ring = 2 * tokens * pair * (2 * 3 * 2 + 3 * 4 + 2)
    matrices, norms, tables = 2 * (4 * 8 * 8 + 3 * 8 * 32), 5 * 8, 2 * 16 * 8
    weights = 3 / 4 * (2 * (3 * matrices + 2 * tables) + 2 * 4 * norms)
    assert least == pytest.approx({"context": ring + weights})
    # The second forward pass makes 2 more hops, since its first one is also the backward pass's.
    full = planning.least_traffic(dataclasses.replace(model, remat="full"), {"context": 4}, 8, 16)
    assert full["context"] - least["context"] == 2 * tokens * pair * 2 * 2
    least = planning.least_traffic(model, {"stage": 2}, 8, 16, schedule=Schedule(2, 1, 2))
    # Half of the 8 × 16 tokens leave a stage in each of 3 steps, and half move up the queue in each
    # of 4: two micro-batches enter, then two leave;
    # half of the table and of the head is gathered from the other stage, and scattered.
    tables = 2 * (16 * 8) // 2 * 2 * 2
    assert least == pytest.approx({"stage": 2 * 7 / 2 * (8 * 16) * 8 * 2 + tables})
