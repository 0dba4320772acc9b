"""Training: the state, the step, and the loop around them."""

from llmjax.train.host_memory import trim_after_compiling
from llmjax.train.state import TrainState, init_state
from llmjax.train.step import Step, make_step

__all__ = ["Step", "TrainState", "init_state", "make_step", "trim_after_compiling"]
