"""Training: the state, the step, and the loop around them."""

from llmjax.train.host_memory import trim_after_compiling
from llmjax.train.state import TrainState, abstract_state, init_state, start_state
from llmjax.train.step import Step, make_step
from llmjax.train.zero import Sharding

__all__ = [
    "Sharding",
    "Step",
    "TrainState",
    "abstract_state",
    "init_state",
    "make_step",
    "start_state",
    "trim_after_compiling",
]
