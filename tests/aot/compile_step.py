"""Compiles the training step of a small Llama for a TPU topology; prints what it needs, as JSON.

A program of its own, run by test_tpu.py: libtpu reads its settings from the environment once.
"""

import json
import math
import re
import sys

import jax
from jax.experimental import topologies

from llmjax import mesh, models, optim
from llmjax import spec as specs
from llmjax.objectives import clm
from llmjax.train import init_state, make_step

BATCH_SIZE, SEQUENCE_LENGTH = 8, 2048
CONFIG = models.llama(
    vocab_size=32000,
    num_layers=4,
    embed_dim=1024,
    num_heads=16,
    num_kv_heads=8,
    mlp_dim=2816,
    max_length=SEQUENCE_LENGTH,
    dtype="bfloat16",
    remat="full",
)


def main(topology: str, config: mesh.MeshConfig) -> None:
    """Prints bytes and array elements on one chip, and the collectives of the program."""
    devices = topologies.get_topology_desc(topology, "tpu").devices
    spec = models.spec(CONFIG)
    optimizer = optim.make(optim.OptimizerConfig(), spec, 1000)
    with jax.set_mesh(mesh.make_mesh(config, devices)):
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(lambda key: init_state(key, spec, optimizer), key)
        rows = jax.ShapeDtypeStruct(
            (BATCH_SIZE, SEQUENCE_LENGTH),
            "int32",
            sharding=mesh.named_sharding(("batch", "sequence")),
        )
        names = ("tokens", "targets", "segment_ids", "positions")
        batch = dict.fromkeys(names, rows)
        compiled = make_step(clm(CONFIG), optimizer).lower(state, batch).compile()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    result = {
        "parameters": specs.count(spec),
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "largest_array": max(
            math.prod(map(int, shape.split(",")))
            for shape in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)
        ),
        "logits_on_a_chip": BATCH_SIZE * SEQUENCE_LENGTH * CONFIG.vocab_size // len(devices),
        "attention_kernels": "flash_attention_forward_kernel" in text,
        "collectives": [
            name
            for name in ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")
            if f" {name}(" in text or f" {name}-start(" in text
        ],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    data, fsdp, tensor = (int(size) for size in sys.argv[2:])
    main(sys.argv[1], mesh.MeshConfig(data, fsdp, tensor))
