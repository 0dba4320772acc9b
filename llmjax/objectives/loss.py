"""The contract of an objective: a weighted sum, never a mean.

A mean over one device's or one micro-batch's tokens depends on how the batch was cut. A sum and
its weight do not: both add up over micro-batches and devices, and are divided once, at the end.
"""

import dataclasses
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
"""(params, batch, key) to the loss and other sums worth reporting; key None: no dropout."""

Prepare = Callable[[Batch, jax.Array | None], Batch]


@dataclasses.dataclass(frozen=True)
class PreparedLoss:
    """A loss that needs something of the whole batch before the batch is cut.

    Random draws for a row (masks, say) depend on the key and on the row's place in the batch, so
    they would change if the batch were cut into micro-batches with keys of their own first. Weights
    that are divided by a number of tokens need that of the whole batch. So whoever cuts a batch
    calls `prepare` on all of it first, with the step's key, and the loss finds what it needs in the
    batch. A loss that is given an unprepared batch prepares it itself; for a batch that is not cut
    the result is the same.

    Attributes:
        prepare: (batch, key) to the batch with more arrays [B, ...]; key None, for evaluation:
            always the same ones.
        compute: the loss of a prepared batch.
        mark: the name of an array that only prepared batches have.
    """

    prepare: Prepare
    compute: Loss
    mark: str

    def __call__(
        self, params: Params, batch: Batch, key: jax.Array | None
    ) -> tuple[Weighted, Metrics]:
        """The loss, as `Loss` says."""
        prepared = batch if self.mark in batch else self.prepare(batch, key)
        return self.compute(params, prepared, key)
