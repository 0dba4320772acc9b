"""Compiles the cross entropy's kernels for one TPU chip; prints bytes, as JSON.

A program of its own, run by test_tpu.py: libtpu reads its settings from the environment once.
"""

import functools
import json
import sys

import jax
from jax.experimental import topologies

from llmjax.kernels.linear_cross_entropy import linear_cross_entropy, linear_log_probs

# name: tokens, channels, vocabulary, what is beyond a plain loss
CASES = {
    "llama 3": (8192, 4096, 128256, {}),
    "llama 3, materialised": (8192, 4096, 128256, {"implementation": "reference"}),
    "gpt2": (4096, 768, 50257, {"label_smoothing": 0.1, "z_loss": 1e-4}),
    "bert": (2560, 768, 30528, {"biased": True}),
    "gemma 2": (2048, 2304, 256000, {"cap": 30.0}),
    "entropies": (4096, 2048, 32000, {"entropy": True}),
}


def temporary(mesh, tokens, channels, vocab, biased=False, entropy=False, **options) -> int:
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

    program = jax.jit(jax.grad(run, argnums=(0, 1, 3) if biased else (0, 1))).lower(
        shape((1, tokens, channels), "bfloat16", "data"),
        shape((vocab, channels), "bfloat16"),
        shape((1, tokens), "int32", "data"),
        shape((vocab,), "float32"),
    )
    compiled = program.compile()
    if "implementation" not in options:
        assert "tpu_custom_call" in compiled.as_text()
    return compiled.memory_analysis().temp_size_in_bytes


def main(topology: str) -> None:
    """Compiles every case."""
    device = topologies.get_topology_desc(topology, "tpu").devices[0]
    mesh = jax.make_mesh((1,), ("data",), devices=[device])
    with jax.set_mesh(mesh):
        print(
            json.dumps(
                {
                    name: temporary(mesh, *sizes, **options)
                    for name, (*sizes, options) in CASES.items()
                }
            )
        )


if __name__ == "__main__":
    main(sys.argv[1])
