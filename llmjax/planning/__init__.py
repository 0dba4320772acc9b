"""Planning: what a run costs, before it runs."""

from llmjax.planning.flops import forward_flops, matmul_params, training_flops

__all__ = ["forward_flops", "matmul_params", "training_flops"]
