"""The contract of an objective: a weighted sum, never a mean.

A mean over one device's or one micro-batch's tokens depends on how the batch was cut. A sum and
its weight do not: both add up over micro-batches and devices, and are divided once, at the end.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import struct

Params = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@struct.dataclass
class Weighted:
    """A sum of losses and what to divide it by.

    Attributes:
        sum: float32 scalar; it has the gradient.
        weight: float32 scalar, the number of tokens, say.
    """

    sum: jax.Array
    weight: jax.Array


Loss = Callable[[Params, Batch, jax.Array | None], tuple[Weighted, Metrics]]
"""(params, batch, key) to the loss and other sums worth reporting; key None: no dropout.

A loss that hides or replaces tokens at random is a `MaskedLoss`: whoever cuts a batch calls its
`prepare` on the whole of it first, so that what is drawn does not depend on the cut.
"""
