"""Compiles a training step for TPUs; prints its bytes on a chip as planned and as compiled.

    compile_memory.py CASE

A program of its own, run by test_tpu.py: libtpu reads its settings from the environment once.
"""

import functools
import json
import sys

import jax
from jax.experimental import topologies

from llmjax import mesh, models, objectives, optim, planning, train
from llmjax.mesh import MeshConfig

LLAMA = {"vocab_size": 32000, "num_layers": 4, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 2816}
MLM = functools.partial(
    objectives.mlm, masking=objectives.MaskingConfig(), mask_id=1, special_ids=(0,)
)
# name: topology, mesh, model, objective, rows, tokens in a row
CASES = {
    "llama": (  # the size of Llama 3.2 3B
        "v5p:2x2x2",
        MeshConfig(data=1, fsdp=8),
        models.llama(
            vocab_size=128256,
            num_layers=28,
            embed_dim=3072,
            num_heads=24,
            num_kv_heads=8,
            mlp_dim=8192,
            max_length=8192,
            remat="full",
            tied=True,
        ),
        objectives.clm,
        16,
        8192,
    ),
    "llama, dots": (
        "v5e:2x2",
        MeshConfig(data=1, fsdp=2, tensor=2),
        models.llama(num_kv_heads=8, max_length=2048, remat="dots", **LLAMA),
        objectives.clm,
        8,
        2048,
    ),
    "gpt2": (
        "v5e:2x2",
        MeshConfig(data=4),
        models.gpt2(
            vocab_size=50304,
            num_layers=12,
            embed_dim=768,
            num_heads=12,
            max_length=1024,
            dropout=models.Dropout(),
        ),
        objectives.clm,
        16,
        1024,
    ),
    "bert": (
        "v6e:2x2",
        MeshConfig(data=2, fsdp=2),
        models.bert(
            vocab_size=30528,
            num_layers=12,
            embed_dim=768,
            num_heads=12,
            mlp_dim=3072,
            max_length=512,
            remat="dots",
            dropout=models.Dropout(),
        ),
        MLM,
        32,
        512,
    ),
    "experts": (
        "v5p:2x2x1",
        MeshConfig(data=1, fsdp=2, expert=2),
        models.qwen3_moe(
            vocab_size=32000,
            num_layers=16,
            embed_dim=1024,
            num_heads=8,
            num_kv_heads=4,
            head_dim=128,
            max_length=2048,
            remat="full",
            experts=models.Experts(count=8, per_token=2, dim=1408),
        ),
        objectives.clm,
        4,
        2048,
    ),
}


def main(case: str) -> None:
    """Prints planned and compiled bytes."""
    topology, over, model, objective, rows, length = CASES[case]
    devices = topologies.get_topology_desc(topology, "tpu").devices
    spec = models.spec(model)
    optimizer = optim.make(optim.OptimizerConfig(), spec, 1000)
    with jax.set_mesh(mesh.make_mesh(over, devices)):
        state = train.abstract_state(spec, optimizer)
        batch = planning.abstract_batch(rows, length)
        step = train.make_step(objective(model), optimizer)
        planned = planning.step_memory(step, state, batch)
        memory = step.lower(state, batch).compile().memory_analysis()
    result = {
        "planned": planned.total,
        "planned_arguments": planned.arguments,
        "peak": memory.peak_memory_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
