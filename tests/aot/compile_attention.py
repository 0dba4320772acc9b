"""Compiles the attention kernels for one TPU chip; prints bytes by length, as JSON.

A program of its own, run by test_tpu.py: libtpu reads its settings from the environment once.
"""

import functools
import json
import sys

import jax
from jax.experimental import topologies

from llmjax.kernels.flash_attention import Mask, flash_attention

LENGTHS = (2048, 8192, 32768)
CHANNELS = (64, 128, 256)
# name: what is beyond causal attention of 8 heads over 2 key heads
VARIANTS = {
    "causal": {},
    "window, segments, cap, dropout": {"window": 512, "segments": True, "cap": 50.0, "rate": 0.1},
}


def memory(mesh, length, channels, window=0, segments=False, cap=0.0, rate=0.0) -> list[int]:
    """Bytes that the forward and backward pass hold beside arguments and results, and of those.

    Arguments as a chip's tiles of 128 lanes hold them: heads of 64 channels take twice their size.
    """
    rows = jax.sharding.NamedSharding(mesh, jax.P())
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=rows)
    query, key = (shape((1, heads, length, channels), "bfloat16") for heads in (8, 2))

    def run(query, key, value, segment_ids, grad):
        mask = Mask(segment_ids if segments else None, window=window)
        attend = functools.partial(
            flash_attention, mask=mask, cap=cap, dropout_rate=rate, dropout_key=jax.random.key(0)
        )
        out, pull = jax.vjp(attend, query, key, value)
        return out, *pull(grad)

    arguments = (query, key, key, shape((1, length), "int32"), query)
    program = jax.jit(run).lower(*arguments).compile()
    assert "tpu_custom_call" in program.as_text()
    analysis = program.memory_analysis()
    return [analysis.temp_size_in_bytes, analysis.argument_size_in_bytes * max(1, 128 // channels)]


def main(topology: str) -> None:
    """Compiles every variant at every length and head size."""
    device = topologies.get_topology_desc(topology, "tpu").devices[0]
    mesh = jax.make_mesh((1,), ("data",), devices=[device])
    report = {}
    with jax.set_mesh(mesh):
        for name, options in VARIANTS.items():
            for channels in CHANNELS:
                sizes = [memory(mesh, length, channels, **options) for length in LENGTHS]
                report[f"{name}, {channels} channels"] = sizes
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
