"""Memory of a training step on one chip, by item, without compiling it.

The step is traced for chips that need not be there, on the mesh that it will run on. What comes in
(parameters, moments, a batch) is known from the types alone. What it holds in between is added up
by `liveness`, from the same program that is compiled, so that models, objectives, optimizers, remat
and the table of shardings are what they are and nothing is said twice.

The textbook's rule, 4 to 8 bytes a parameter, leaves out what training holds. With Adam it is 16: 4
of the parameter, 4 of its gradient, 8 of its moments; 18 with the rounded copy that products read
(Rajbhandari et al. 2020, section 3.1); and activations on top.
"""

import dataclasses
from typing import Any

import jax

from llmjax import mesh
from llmjax.planning import liveness, traces
from llmjax.train import TrainState

KEPT = ("tokens", "targets", "segment_ids", "positions")  # of a batch, as the loader makes them


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on one chip at the moment of a step when there are the most.

    Attributes:
        parameters: in float32.
        optimizer: its state.
        batch: the tokens, and the few numbers that a state has besides.
        gradients: that there are at that moment.
        weights: rounded to the compute precision, or gathered from other chips.
        activations: kept for the backward pass.
        working: what the layer, the head or the update that runs then needs.
        all_gradients: of all parameters, when they are complete.
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
        """What lies there between steps."""
        return self.parameters + self.optimizer + self.batch

    @property
    def total(self) -> float:
        """All of it."""
        return self.arguments + self.gradients + self.weights + self.activations + self.working


def step_memory(step: Any, state: TrainState, batch: Any) -> StepMemory:
    """Of a step of `train.make_step`, for the current mesh (`mesh.abstract_mesh`).

    For TPUs and layers in a loop this is within 5 % of the compiler's own peak, the
    `peak_memory_in_bytes` of `memory_analysis()` (tests/aot). What it sets aside, arguments and
    temporaries together, was 5 to 34 % more than that (BENCH.md): leave room. For GPUs it has not
    been compared with anything.

    Args:
        step: compiled by `train.make_step`.
        state: abstract, from `jax.eval_shape` of `train.init_state`.
        batch: abstract.
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
    """A batch of tokens for the current mesh."""
    sharding = mesh.named_sharding(("batch", "sequence"))
    tokens = jax.ShapeDtypeStruct((rows, length), "int32", sharding=sharding)
    return dict.fromkeys(KEPT, tokens)
