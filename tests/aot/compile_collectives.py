"""Compiles loops of one collective for a TPU topology; prints what was counted, as JSON.

    compile_collectives.py TOPOLOGY

A mesh of data=2 × fsdp=2 × tensor=the rest; 5 rounds; 64 rows of 128 floats a device.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llmjax import planning

ROUNDS = 5
OPERATIONS = {
    "all-gather": lambda x, axis: jax.lax.all_gather(x, axis, tiled=True)[: len(x)],
    "all-reduce": lambda x, axis: jax.lax.pcast(jax.lax.psum(x, axis), axis, to="varying"),
    "reduce-scatter": lambda x, axis: jnp.tile(jax.lax.psum_scatter(x, axis, tiled=True), (2, 1)),
    "all-to-all": lambda x, axis: jax.lax.all_to_all(x, axis, 0, 0, tiled=True),
    "collective-permute": lambda x, axis: jax.lax.ppermute(x, axis, [(0, 1), (1, 0)]),
}
CASES = [
    ("all-gather", "fsdp"),
    ("all-reduce", "tensor"),
    ("all-reduce", ("data", "tensor")),
    ("reduce-scatter", "fsdp"),
    ("all-to-all", "data"),
    ("collective-permute", "fsdp"),
]


def loop(kind: str, axis: str | tuple[str, ...], x: jax.Array) -> jax.Array:
    """Rounds of one collective."""

    def one(x, _):
        return jnp.sin(OPERATIONS[kind](x, axis)), None

    return jax.lax.scan(one, x, None, length=ROUNDS)[0]


def main(topology: str) -> None:
    """Each case: kind and axes, and what was found."""
    devices = topologies.get_topology_desc(topology, "tpu").devices
    sizes = {"data": 2, "fsdp": 2, "tensor": len(devices) // 4}
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices)
    every = P(tuple(sizes))
    sharding = NamedSharding(mesh, every)
    x = jax.ShapeDtypeStruct((64 * len(devices), 128), jnp.float32, sharding=sharding)
    results = []
    for kind, axis in CASES:
        mapped = jax.shard_map(
            functools.partial(loop, kind, axis), mesh=mesh, in_specs=every, out_specs=every
        )
        text = jax.jit(mapped).lower(x).compile().as_text()
        found = [
            [one.kind, list(one.axes), amounts.calls, amounts.bytes, amounts.wire]
            for one, amounts in planning.collectives(text, sizes).items()
        ]
        results.append([kind, [axis] if isinstance(axis, str) else list(axis), found])
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
