"""Compiles the training step of a model for a TPU topology; prints what it needs, as JSON.

    compile_step.py MODEL TOPOLOGY DATA FSDP TENSOR [EXPERT STAGE CONTEXT]

A program of its own, run by test_tpu.py: libtpu reads its settings from the environment once.
"""

import dataclasses
import functools
import json
import math
import re
import sys

import jax
from jax.experimental import topologies

from llmjax import mesh, models, optim
from llmjax import spec as specs
from llmjax.objectives import MaskingConfig, clm, mlm
from llmjax.planning import program_cost
from llmjax.train import abstract_state, make_step

COMPUTE = {"dtype": "bfloat16", "remat": "full"}
# name: model, objective, rows, tokens in a row
MODELS = {
    "small": (
        models.llama(
            vocab_size=32000,
            num_layers=4,
            embed_dim=1024,
            num_heads=16,
            num_kv_heads=8,
            mlp_dim=2816,
            max_length=2048,
            **COMPUTE,
        ),
        clm,
        8,
        2048,
    ),
    "8b": (  # Llama 3.1
        models.llama(
            vocab_size=128256,
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            mlp_dim=14336,
            max_length=8192,
            rope=models.Rope(5e5),
            **COMPUTE,
        ),
        clm,
        32,
        8192,
    ),
    "deberta": (
        models.deberta(
            vocab_size=128100,
            num_layers=2,
            embed_dim=768,
            num_heads=12,
            mlp_dim=3072,
            max_length=1024,
            **COMPUTE,
        ),
        functools.partial(mlm, masking=MaskingConfig(), mask_id=1, special_ids=(0,)),
        16,
        1024,
    ),
}


def compile_step(name: str, devices: list, config: mesh.MeshConfig) -> jax.stages.Compiled:
    """The whole step, for abstract arrays."""
    model, objective, rows, length = MODELS[name]
    spec = models.spec(model)
    optimizer = optim.make(optim.OptimizerConfig(), spec, 1000)
    with jax.set_mesh(mesh.make_mesh(config, devices)):
        state = abstract_state(spec, optimizer)
        sharding = mesh.named_sharding(("batch", "sequence"))
        tokens = jax.ShapeDtypeStruct((rows, length), "int32", sharding=sharding)
        batch = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), tokens)
        return make_step(objective(model), optimizer).lower(state, batch).compile()


def main(name: str, topology: str, config: mesh.MeshConfig) -> None:
    """Prints bytes, array elements and cost on one chip, and the program's collectives."""
    devices = topologies.get_topology_desc(topology, "tpu").devices
    compiled = compile_step(name, devices, config)
    model, _, rows, length = MODELS[name]
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    shapes = [
        [int(size) for size in shape.split(",")]
        for shape in set(re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text))
    ]
    # Of the vocabulary, or a part of it that a power of two of chips share.
    vocabulary = {model.vocab_size >> k for k in range(len(devices).bit_length())}
    result = {
        "parameters": specs.count(models.spec(model)),
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "largest_over_vocabulary": max(
            math.prod(shape) for shape in shapes if vocabulary & set(shape)
        ),
        "logits_on_a_chip": rows * length * model.vocab_size // len(devices),
        "square_in_length": [shape for shape in shapes if shape.count(length) > 1],
        "kernels": sorted(
            set(re.findall(r"(\w+_attention_\w+|linear_cross_entropy\w+?)(?:\.\d+)* = ", text))
        ),
        "cost": dataclasses.asdict(program_cost(text)),
        "collectives": [
            name
            for name in (
                "all-gather",
                "reduce-scatter",
                "all-reduce",
                "all-to-all",
                "collective-permute",
            )
            if f" {name}(" in text or f" {name}-start(" in text
        ],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], mesh.MeshConfig(*map(int, sys.argv[3:])))
