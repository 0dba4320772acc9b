"""Compiles the attention kernels for an H100 that is not there; prints bytes, as JSON.

A program of its own: it needs the extra `cuda`, and JAX_PLATFORMS=cpu where there is no GPU.
"""

import functools
import json

import jax

from llmjax import planning
from llmjax.kernels.flash_attention import Mask, flash_attention

LENGTHS = (2048, 8192, 32768)
CHANNELS = (64, 128, 256)
# name: what is beyond causal attention of 8 heads over 2 key heads
VARIANTS = {
    "causal": {},
    "window, segments, cap, dropout": {"window": 512, "segments": True, "cap": 50.0, "rate": 0.1},
    "float32": {"dtype": "float32"},
}
ROWS = 8  # of a model that writes


def training(
    shape, length, channels, *, window=0, segments=False, cap=0.0, rate=0.0, dtype="bfloat16"
) -> list[int]:
    """Bytes that the forward and backward pass hold beside arguments and results, and of those."""
    query, key = (shape((1, heads, length, channels), dtype) for heads in (8, 2))

    def run(query, key, value, segment_ids, grad):
        attend = functools.partial(
            flash_attention,
            mask=Mask(segment_ids if segments else None, window=window),
            cap=cap,
            dropout_rate=rate,
            dropout_key=jax.random.key(0),
            implementation="pallas_gpu",
        )
        out, pull = jax.vjp(attend, query, key, value)
        return out, *pull(grad)

    return memory(run, 3, query, key, key, shape((1, length), "int32"), query)


def decoding(shape, length, channels) -> list[int]:
    """The same of one more token to each row of a cache."""

    def run(query, key, value, offset):
        return flash_attention(query, key, value, Mask(offset=offset))

    query, key = shape((ROWS, 8, 1, channels)), shape((ROWS, 2, length, channels))
    return memory(run, 1, query, key, key, shape((ROWS,), "int32"))


def memory(run, kernels: int, *arguments) -> list[int]:
    """Bytes of a compiled program, which has so many kernels."""
    program = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
    assert program.as_text().count('custom_call_target="__gpu$xla.gpu.triton"') == kernels
    analysis = program.memory_analysis()
    return [analysis.temp_size_in_bytes, analysis.argument_size_in_bytes]


def main() -> None:
    """Compiles every variant at every length and head size."""
    mesh = jax.make_mesh((1,), ("data",), devices=planning.target("h100:1").devices)
    rows = jax.sharding.NamedSharding(mesh, jax.P())

    def shape(sizes, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=rows)

    report = {}
    with jax.set_mesh(mesh):
        for channels in CHANNELS:
            for name, options in VARIANTS.items():
                report[f"{name}, {channels} channels"] = [
                    training(shape, length, channels, **options) for length in LENGTHS
                ]
            report[f"cache, {channels} channels"] = [
                decoding(shape, length, channels) for length in LENGTHS
            ]
    print(json.dumps(report))
    for name, sizes in report.items():
        # Beside results: what a query has one of, or one for each of the few splits of a cache.
        for temporary, arguments in sizes:
            assert temporary < arguments / 8, name


if __name__ == "__main__":
    main()
