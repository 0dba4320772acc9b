"""Leaf types for weights, and the one product that handles them all.

A weight in a parameter tree is an array or one of the leaf types here. Models multiply by weights
only through `einsum`, so low-rank adapters and quantized weights need no change to any model. Leaf
types nest: `Lora` over `Nf4` is QLoRA, `Dora` over `Lora` is DoRA.
"""

from llmjax.weights.leaves import (
    KINDS,
    WRAPPERS,
    Dora,
    Held,
    Lora,
    Scaled,
    Side,
    Transposed,
    Weight,
    is_kind,
    materialize,
    norms,
    of_replicas,
    parted,
    transpose,
)
from llmjax.weights.products import einsum, scaled_bias
from llmjax.weights.quantized import Int8, Nf4, layout, quantize, quantize_nf4

__all__ = [
    "KINDS",
    "WRAPPERS",
    "Dora",
    "Held",
    "Int8",
    "Lora",
    "Nf4",
    "Scaled",
    "Side",
    "Transposed",
    "Weight",
    "einsum",
    "is_kind",
    "layout",
    "materialize",
    "norms",
    "of_replicas",
    "parted",
    "quantize",
    "quantize_nf4",
    "scaled_bias",
    "transpose",
]
