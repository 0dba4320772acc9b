"""Compiles disentangled attention for an H100 that is not there; prints bytes, as JSON.

A program of its own: it needs the extra `cuda`, and JAX_PLATFORMS=cpu where there is no GPU.
"""

import functools
import json

import jax
import numpy as np

from llmjax import planning
from llmjax.kernels.disentangled_attention import disentangled_attention
from llmjax.kernels.flash_attention import Mask

BATCH, HEADS, SPAN = 8, 4, 256
SIZES = [("bfloat16", length, channels) for channels in (64, 128) for length in (512, 2048, 8192)]
SIZES += [("float32", 512, 64), ("bfloat16", 500, 80), ("bfloat16", 2048, 256)]
IMPLEMENTATIONS = ("pallas_gpu", "xla")


def temporary(mesh, dtype, length, channels, implementation) -> int:
    """Bytes that the forward and backward pass hold beside arguments and results."""
    here = jax.sharding.NamedSharding(mesh, jax.P())
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=here)
    states = shape((BATCH, HEADS, length, channels), dtype)
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
                implementation=implementation,
            )

        out, pull = jax.vjp(attend, query, key, value, c2p, p2c)
        return out, *pull(grad)

    arguments = (states, states, states, table, table, shape((BATCH, length), "int32"), states)
    with jax.set_mesh(mesh):
        program = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
    kernels = program.as_text().count("__gpu$xla.gpu.triton")
    assert kernels == (4 if implementation == "pallas_gpu" else 0), kernels
    return program.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Compiles every size; of 64 channels by XLA's implementation, too."""
    mesh = jax.make_mesh((1,), ("data",), devices=planning.target("h100:1").devices)
    report = {}
    for dtype, length, channels in SIZES:
        names = IMPLEMENTATIONS if channels == 64 else ("pallas_gpu",)
        report[f"{dtype}, {length} tokens, {channels} channels"] = found = {
            name: temporary(mesh, dtype, length, channels, name) for name in names
        }
        # A number of two bytes for each pair would be more.
        assert length < 2048 or found["pallas_gpu"] < 2 * BATCH * HEADS * length**2
    print(json.dumps(report))


if __name__ == "__main__":
    main()
