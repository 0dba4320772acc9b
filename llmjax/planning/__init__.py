"""Planning: what a run costs, before it runs."""

from llmjax.planning.cost import Cluster, Price, prices
from llmjax.planning.fitting import Fit, Runs, fit, read_runs
from llmjax.planning.flops import (
    active_params,
    forward_flops,
    matmul_params,
    mlm_flops,
    rtd_flops,
    training_flops,
)
from llmjax.planning.hardware import CHIPS, Chip, chip, chip_of, matmul_rate, peak_flops
from llmjax.planning.program import ProgramCost, program_cost
from llmjax.planning.scaling import Allocation, Frontier, LossLaw, Overtraining, overtrain

__all__ = [
    "CHIPS",
    "Allocation",
    "Chip",
    "Cluster",
    "Fit",
    "Frontier",
    "LossLaw",
    "Overtraining",
    "Price",
    "ProgramCost",
    "Runs",
    "active_params",
    "chip",
    "chip_of",
    "fit",
    "forward_flops",
    "matmul_params",
    "matmul_rate",
    "mlm_flops",
    "overtrain",
    "peak_flops",
    "prices",
    "program_cost",
    "read_runs",
    "rtd_flops",
    "training_flops",
]
