"""Compiles the cross entropy for an H100 that is not there; prints bytes of temporaries, as JSON.

A program of its own: it needs the extra `cuda`, and JAX_PLATFORMS=cpu where there is no GPU.
"""

import functools
import json

import jax

from llmjax import planning
from llmjax.kernels.linear_cross_entropy import linear_cross_entropy, linear_log_probs

# name: tokens, channels, vocabulary, what is beyond a plain loss
CASES = {
    "llama 3": (8192, 4096, 128256, {}),
    "llama 3, float32 weight": (8192, 4096, 128256, {"dtype": "float32"}),
    "gpt2": (4096, 768, 50257, {"label_smoothing": 0.1, "z_loss": 1e-4}),
    "bert": (2560, 768, 30528, {"biased": True}),
    "gemma 2": (2048, 2304, 256000, {"cap": 30.0}),
    "entropies": (4096, 2048, 32000, {"entropy": True}),
}
IMPLEMENTATIONS = ("reference", "xla", "pallas_gpu")


def temporary(
    mesh, tokens, channels, vocab, dtype="bfloat16", biased=False, entropy=False, **options
) -> int:
    """Bytes that loss and gradients hold beside arguments and results."""

    def shape(sizes, dtype, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.P(*axes))
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    def run(hidden, weight, targets, bias):
        call = (
            functools.partial(linear_log_probs, entropy=True) if entropy else linear_cross_entropy
        )
        first, second = call(hidden, weight, targets, bias=bias if biased else None, **options)
        return (first + second).sum() if entropy else first

    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(run, argnums=(0, 1, 3) if biased else (0, 1))).trace(
            shape((1, tokens, channels), "bfloat16", "data"),
            shape((vocab, channels), dtype),
            shape((1, tokens), "int32", "data"),
            shape((vocab,), "float32"),
        )
        compiled = program.lower(lowering_platforms=("cuda",)).compile()
    kernels = compiled.as_text().count("__gpu$xla.gpu.triton")
    assert bool(kernels) == (options["implementation"] == "pallas_gpu")
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Compiles every case, by every implementation."""
    mesh = jax.make_mesh((1,), ("data",), devices=planning.target("h100:1").devices)
    found = {
        name: {
            implementation: temporary(mesh, *sizes, **options, implementation=implementation)
            for implementation in IMPLEMENTATIONS
        }
        for name, (*sizes, options) in CASES.items()
    }
    print(json.dumps(found))
    llama = found["llama 3"]
    assert llama["pallas_gpu"] < 0.15 * llama["reference"]


if __name__ == "__main__":
    main()
