"""Planning: what a run costs, before it runs."""

from llmjax.planning.ahead import (
    OutOfMemory,
    Time,
    compile_ahead,
    out_of_memory,
    peak_bytes,
    step_time,
)
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
from llmjax.planning.liveness import local_bytes
from llmjax.planning.memory import StepMemory, abstract_batch, step_memory
from llmjax.planning.program import Amounts, Collective, ProgramCost, collectives, program_cost
from llmjax.planning.scaling import Allocation, Frontier, LossLaw, Overtraining, overtrain
from llmjax.planning.supply import EPOCHS, Supply, enough_for, supplies, worth
from llmjax.planning.target import Target, target
from llmjax.planning.traffic import ALONE, by_axis, least_traffic

__all__ = [
    "ALONE",
    "CHIPS",
    "EPOCHS",
    "Allocation",
    "Amounts",
    "Chip",
    "Cluster",
    "Collective",
    "Fit",
    "Frontier",
    "LossLaw",
    "OutOfMemory",
    "Overtraining",
    "Price",
    "ProgramCost",
    "Runs",
    "StepMemory",
    "Supply",
    "Target",
    "Time",
    "abstract_batch",
    "active_params",
    "by_axis",
    "chip",
    "chip_of",
    "collectives",
    "compile_ahead",
    "enough_for",
    "fit",
    "forward_flops",
    "least_traffic",
    "local_bytes",
    "matmul_params",
    "matmul_rate",
    "mlm_flops",
    "out_of_memory",
    "overtrain",
    "peak_bytes",
    "peak_flops",
    "prices",
    "program_cost",
    "read_runs",
    "rtd_flops",
    "step_memory",
    "step_time",
    "supplies",
    "target",
    "training_flops",
    "worth",
]
