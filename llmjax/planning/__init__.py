"""Planning: what a run costs, before it runs."""

from llmjax.planning.flops import forward_flops, matmul_params, training_flops
from llmjax.planning.hardware import matmul_rate, peak_flops

__all__ = ["forward_flops", "matmul_params", "matmul_rate", "peak_flops", "training_flops"]
