"""Memory of a training step on one chip, by item, without compiling it.

The step is traced for chips that need not be present, on the mesh that it will run on. The sizes
of its inputs (parameters, moments, a batch) follow from their types. `liveness` adds up what the
step allocates, from the same program that is compiled; so models, objectives, optimizers, remat and
sharding rules need no second description here.

The textbook's rule, 4 to 8 bytes per parameter, leaves out training state. Adam needs 16 bytes: 4
for the parameter, 4 for its gradient and 8 for its moments; or 18 with the copy in compute
precision (Rajbhandari et al. 2020, section 3.1). Activations come on top.
"""

import dataclasses
from typing import Any

import jax

from llmjax import mesh
from llmjax.planning import liveness, traces
from llmjax.train import TrainState

KEPT = ("tokens", "targets", "segment_ids", "positions")  # the arrays of the loader's batch


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on one chip at the peak of a step.

    Attributes:
        parameters: parameters in float32.
        optimizer: optimizer state.
        batch: the batch and the small remaining fields of the state.
        gradients: those alive at the peak.
        weights: cast to compute precision or gathered from other chips.
        activations: kept for the backward pass.
        working: temporaries of the layer, head or update that runs at the peak.
        all_gradients: gradients of all parameters, when complete.
    """

    parameters: float
    optimizer: float
    batch: float
    gradients: float
    weights: float
    activations: float
    working: float
    all_gradients: float

    @property
    def arguments(self) -> float:
        """What stays in memory between steps."""
        return self.parameters + self.optimizer + self.batch

    @property
    def total(self) -> float:
        """The peak."""
        return self.arguments + self.gradients + self.weights + self.activations + self.working


def step_memory(step: Any, state: TrainState, batch: Any) -> StepMemory:
    """Memory of a step of `train.make_step` on the current mesh (`mesh.abstract_mesh`).

    On TPUs, with layers in a loop, this is within 5 % of the compiler's own peak, the
    `peak_memory_in_bytes` of `memory_analysis()` (tests/aot). The compiler's allocation, arguments
    plus temporaries, was 5 to 26 % above that peak (BENCH.md): leave room. On GPUs the estimate
    has not been validated.

    Args:
        step: a step from `train.make_step`.
        state: abstract state, from `jax.eval_shape` of `train.init_state`.
        batch: abstract batch.
    """
    found = traces.program(step.trace(state, batch).jaxpr)
    shapes = [param.shape for param in jax.tree.leaves(state.params)]
    meter = liveness.Meter(tiled=mesh.platform() == "tpu", shapes=shapes)
    held = liveness.peak(meter.spans(found))
    parameters, optimizer = _bytes(state.params), _bytes(state.opt_state)
    everything = sum(traces.local_bytes(value.aval) for value in found.inputs)
    return StepMemory(
        parameters=parameters,
        optimizer=optimizer,
        batch=everything - parameters - optimizer,
        gradients=held.get("gradients", 0.0),
        weights=held.get("weights", 0.0),
        activations=held.get("activations", 0.0),
        working=held.get("working", 0.0),
        all_gradients=parameters,
    )


def _bytes(tree: Any) -> float:
    return sum(map(traces.local_bytes, jax.tree.leaves(tree)))


def abstract_batch(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of tokens on the current mesh."""
    sharding = mesh.named_sharding(("batch", "sequence"))
    tokens = jax.ShapeDtypeStruct((rows, length), "int32", sharding=sharding)
    return dict.fromkeys(KEPT, tokens)
