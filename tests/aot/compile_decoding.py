"""Compiles the step that writes one token for a TPU chip; prints bytes, as JSON.

A program of its own, run by test_tpu.py: libtpu reads its settings from the environment once.
"""

import functools
import json
import sys

import jax
from jax.experimental import topologies

from llmjax import mesh, models
from llmjax import spec as specs

ROWS, CAPACITY = 8, 8192
CONFIG = models.llama(
    vocab_size=32000,
    num_layers=4,
    embed_dim=1024,
    num_heads=16,
    num_kv_heads=4,
    head_dim=128,
    mlp_dim=2816,
    max_length=CAPACITY,
    dtype="bfloat16",
    scan_layers=False,
)


def main(topology: str) -> None:
    """Prints what the step holds beside its arguments, and the size of its cache."""
    devices = topologies.get_topology_desc(topology, "tpu").devices[:1]
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(), devices)):
        params = specs.abstract(models.spec(CONFIG), "bfloat16")
        cache = jax.eval_shape(functools.partial(models.empty_cache, CONFIG, ROWS, CAPACITY))
        tokens = jax.ShapeDtypeStruct(
            (ROWS, 1), "int32", sharding=mesh.named_sharding(("batch", "sequence"))
        )

        @functools.partial(jax.jit, donate_argnums=2)
        def step(params, tokens, cache):
            return models.apply(params, tokens, CONFIG, cache=cache)

        compiled = step.lower(params, tokens, cache).compile()
    memory = compiled.memory_analysis()
    report = {
        "attention_kernels": compiled.as_text().count("flash_attention_forward_kernel"),
        "temporary": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "cache": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache.layers)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
