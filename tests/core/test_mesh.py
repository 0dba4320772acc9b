"""Meshes, and logical axes on them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from llmjax import mesh
from llmjax.parts import on_parts


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (mesh.MeshConfig(), {"data": 8}),
        (mesh.MeshConfig(data=2, fsdp=-1, tensor=2), {"data": 2, "fsdp": 2, "tensor": 2}),
        (mesh.MeshConfig(data=1, fsdp=8), {"fsdp": 8}),
        (mesh.MeshConfig(tensor=2, expert=4), {"tensor": 2, "expert": 4}),
        (mesh.MeshConfig(stage=4, context=2), {"stage": 4, "context": 2}),
    ],
)
def test_sizes_and_what_is_left_for_minus_one(config, sizes):
    made = mesh.make_mesh(config)
    assert made.shape == dict.fromkeys(mesh.AXES, 1) | sizes
    assert set(made.axis_types) == {AxisType.Explicit}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 0}, "mesh.data=0"),
        ({"tensor": -2}, "mesh.tensor=-2"),
        ({"expert": 0}, "mesh.expert=0"),
        ({"data": -1, "fsdp": -1}, "only one axis"),
        ({"data": 3}, "data=3 × fsdp=1 × context=1 × tensor=1 × expert=1 needs 3 devices, but"),
        ({"data": -1, "tensor": 3}, "needs 6 devices, but there are 8"),
        ({"data": -1, "fsdp": 16}, "data=1 × fsdp=16 .* needs 16 devices, but there are 8"),
        ({"data": -1, "tensor": 16}, "there are 8"),
    ],
)
def test_impossible_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        mesh.make_mesh(mesh.MeshConfig(**sizes))


def test_logical_axes_become_mesh_axes():
    assert mesh.partition_spec(("batch", "sequence", None)) == jax.P(
        ("stage", "data", "fsdp", "expert"), "context", None
    )
    assert mesh.partition_spec(("vocab", "embed")) == jax.P("tensor", ("fsdp", "context", "expert"))
    assert mesh.partition_spec(("experts", "mlp")) == jax.P("expert", "tensor")


@pytest.mark.parametrize(
    ("axes", "message"),
    [(("embed", "width"), "width"), (("heads", "mlp"), "over one mesh axis")],
)
def test_impossible_axes_are_named(axes, message):
    with pytest.raises(ValueError, match=message):
        mesh.partition_spec(axes)


def test_without_a_mesh_everything_is_the_identity():
    x = jnp.ones((2, 3))
    assert mesh.place(x, ("batch", "embed")) is x
    assert mesh.named_sharding(("batch",)) is None
    assert mesh.size("batch") == 1
    assert mesh.sharded(jnp.sin, ("batch",)) is jnp.sin


def test_sizes_of_logical_axes():
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        assert [mesh.size(axis) for axis in ("batch", "embed", "heads", "sequence")] == [4, 2, 2, 1]
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, expert=4))):
        assert [mesh.size(axis) for axis in ("batch", "experts", "mlp")] == [8, 4, 1]


def made_of(kind, **sizes):
    """A mesh whose axes are of a kind."""
    made = mesh.make_mesh(mesh.MeshConfig(**sizes))
    return jax.sharding.Mesh(made.devices, mesh.AXES, axis_types=(kind,) * len(mesh.AXES))


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_place_moves(kind):
    with jax.set_mesh(made_of(kind, data=2, fsdp=2, tensor=2)):
        x = jax.jit(lambda x: mesh.place(2 * x, ("batch", "mlp")))(jnp.ones((8, 6)))
        assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}
        np.testing.assert_array_equal(x, 2 * np.ones((8, 6)))


def test_inside_shard_map_manual_axes_are_left_alone():
    """A pipeline's stages run the same model functions on what is left of the mesh."""
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=1, tensor=4))):

        @jax.jit
        @jax.shard_map(in_specs=jax.P("data"), out_specs=jax.P("data"), axis_names={"data"})
        def double(x):
            return mesh.place(2 * x, ("batch", "mlp"))

        x = jax.reshard(jnp.ones((4, 8)), jax.P("data"))
        np.testing.assert_array_equal(double(x), 2 * np.ones((4, 8)))


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_on_parts_sums_over_what_splits_an_argument_alone(kind):
    """A product whose contracted axis is split, with what is on each device's mind beside it."""
    random = np.random.default_rng(0)
    x, weight = random.normal(size=(4, 6)), random.normal(size=(6, 3))
    seen = []

    def product(x, weight):
        seen.append((x.shape, weight.shape))
        return x @ weight

    axes = (("batch", "mlp"), ("mlp", None))

    def total(x, weight):
        out = on_parts(product, axes, ("batch", None))(x, weight)
        return jnp.sum(jnp.sin(out)), out

    expected = jax.grad(total, (0, 1), has_aux=True)(x, weight)
    assert seen == [((4, 6), (6, 3))]
    with jax.set_mesh(made_of(kind, data=2, tensor=2, context=2)):
        found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, weight)
    assert seen[1:] == [((2, 3), (3, 3))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_batches_are_split_by_rows():
    rows = np.arange(32, dtype=np.int32).reshape(8, 4)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        tokens = mesh.shard_batch({"tokens": rows})["tokens"]
        assert {shard.data.shape for shard in tokens.addressable_shards} == {(2, 4)}
        np.testing.assert_array_equal(tokens, rows)
    assert isinstance(mesh.shard_batch({"tokens": rows})["tokens"], jax.Array)


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """A device of some process."""

    process_index: int


@pytest.mark.parametrize(
    ("sizes", "processes", "shares"),
    [
        ((2, 2, 1), 4, [(0,), (1,), (2,), (3,)]),
        ((2, 2, 1), 2, [(0, 1), (2, 3)]),
        ((1, 2, 2), 4, [(0,), (0,), (1,), (1,)]),
        ((1, 1, 4), 2, [(0,), (0,)]),
        ((1, 2, 2), 1, [(0, 1)]),
    ],
)
def test_processes_that_split_the_same_rows_read_the_same_share(sizes, processes, shares):
    """Two processes of a mesh that splits heads alone both need all rows."""
    count = int(np.prod(sizes))
    devices = np.array([Elsewhere(i * processes // count) for i in range(count)])
    made = types.SimpleNamespace(
        axis_names=("data", "fsdp", "tensor"),
        shape=dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)),
        devices=devices.reshape(sizes),
    )
    found = [mesh.row_shares(made, process) for process in range(processes)]
    assert [mine for mine, _ in found] == shares
    assert all(everyone == sorted(set(shares)) for _, everyone in found)


def test_processes_that_share_some_rows_and_not_all_are_refused():
    devices = np.array([Elsewhere(process) for process in (0, 0, 1, 1, 2, 2)]).reshape(2, 3)
    made = types.SimpleNamespace(
        axis_names=("fsdp", "tensor"), shape={"fsdp": 2, "tensor": 3}, devices=devices
    )
    with pytest.raises(ValueError, match="that processes share only"):
        mesh.row_shares(made, 0)
