"""Planning: what a run costs, before it runs."""

from llmjax.planning.flops import (
    forward_flops,
    matmul_params,
    mlm_flops,
    rtd_flops,
    training_flops,
)
from llmjax.planning.hardware import matmul_rate, peak_flops
from llmjax.planning.program import ProgramCost, program_cost

__all__ = [
    "ProgramCost",
    "forward_flops",
    "matmul_params",
    "matmul_rate",
    "mlm_flops",
    "peak_flops",
    "program_cost",
    "rtd_flops",
    "training_flops",
]
