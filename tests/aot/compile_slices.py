"""Compiles a step for two slices of TPUs; prints which axes cross between them, as JSON.

A program of its own, run by test_tpu.py: libtpu reads its settings from the environment once.
"""

import json

import jax
import numpy as np
from jax.experimental import topologies

from llmjax import mesh, models, optim, planning
from llmjax.objectives import clm
from llmjax.train import abstract_state, make_step

MODEL = models.llama(
    vocab_size=256, num_layers=2, embed_dim=128, num_heads=4, mlp_dim=256, max_length=128
)


def crossing(made: jax.sharding.Mesh) -> list[str]:
    """The axes along which devices are of different slices."""
    slices = np.vectorize(lambda device: device.slice_index)(made.devices)
    return [name for i, name in enumerate(made.axis_names) if np.any(np.diff(slices, axis=i))]


def main() -> None:
    """Three meshes of 2 × 16 chips; a step for one of them, of whose axis data XLA tells nothing.

    What slices send each other goes through their hosts.
    """
    devices = topologies.get_topology_desc("v5e:4x4", "tpu", num_slices=2).devices
    found = []
    for sizes in ({"data": 2, "fsdp": 16}, {"data": 1, "fsdp": 32}, {"stage": 2, "tensor": 4}):
        made = mesh.make_mesh(mesh.MeshConfig(**{"data": 1, "fsdp": -1} | sizes), devices)
        found.append(crossing(made))
    spec = models.spec(MODEL)
    optimizer = optim.make(optim.OptimizerConfig(), spec, 1000)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=16), devices)):
        batch = planning.abstract_batch(32, 128)
        step = make_step(clm(MODEL), optimizer)
        text = step.lower(abstract_state(spec, optimizer), batch).compile().as_text()
    sizes = {"data": 2, "fsdp": 16}
    sent = planning.by_axis(planning.collectives(text, sizes), sizes)
    least = planning.least_traffic(MODEL, sizes, 32, 128)
    print(json.dumps({"crossing": found, "fsdp": sent["fsdp"] / least["fsdp"]}))


if __name__ == "__main__":
    main()
