"""Compiles disentangled attention for one TPU chip; prints bytes by size, as JSON.

A program of its own, run by test_tpu.py: libtpu reads its settings from the environment once.
"""

import functools
import json
import sys

import jax
import numpy as np
from jax.experimental import topologies

from llmjax.kernels.disentangled_attention import disentangled_attention
from llmjax.kernels.flash_attention import Mask

LENGTHS = (2048, 8192, 32768)
CHANNELS = (64, 128, 256)
HEADS, SPAN = 2, 256
# Of 512 tokens all pairs are one tile, in another kernel.
SIZES = [("float32", 512, 64), ("bfloat16", 512, 64)]
SIZES += [("bfloat16", length, channels) for channels in CHANNELS for length in LENGTHS]


def memory(mesh, dtype, length, channels) -> list[int]:
    """Bytes that the forward and backward pass hold beside arguments and results, and of those.

    Arguments as a chip's tiles of 128 lanes hold them: heads of 64 channels take twice their size.
    """
    here = jax.sharding.NamedSharding(mesh, jax.P())
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=here)
    states = shape((1, HEADS, length, channels), dtype)
    table = shape((HEADS, 2 * SPAN, channels), dtype)
    distances = np.arange(length - 1, -length, -1)
    rows = np.clip(distances + SPAN, 0, 2 * SPAN - 1)

    def run(query, key, value, c2p, p2c, segment_ids, grad):
        def attend(query, key, value, c2p, p2c):
            return disentangled_attention(
                query,
                key,
                value,
                rows,
                Mask(segment_ids, causal=False),
                c2p=c2p,
                p2c=p2c,
                scale=(3 * channels) ** -0.5,
                dropout_rate=0.1,
                dropout_key=jax.random.key(0),
            )

        out, pull = jax.vjp(attend, query, key, value, c2p, p2c)
        return out, *pull(grad)

    arguments = (states, states, states, table, table, shape((1, length), "int32"), states)
    program = jax.jit(run).lower(*arguments).compile()
    assert "tpu_custom_call" in program.as_text()
    analysis = program.memory_analysis()
    return [analysis.temp_size_in_bytes, analysis.argument_size_in_bytes * max(1, 128 // channels)]


def main(topology: str) -> None:
    """Compiles every length and head size."""
    device = topologies.get_topology_desc(topology, "tpu").devices[0]
    mesh = jax.make_mesh((1,), ("data",), devices=[device])
    report = {}
    with jax.set_mesh(mesh):
        for dtype, length, channels in SIZES:
            name = f"{dtype}, {length} tokens, {channels} channels"
            report[name] = memory(mesh, dtype, length, channels)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
