"""The interface of an objective: a weighted sum, never a mean.

A mean over the tokens of a device or micro-batch depends on how the batch was split. A sum and its
weight do not: both add up over micro-batches and devices, and are divided once, at the end.
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
        sum: float32 scalar, which is differentiated.
        weight: float32 scalar, such as the number of tokens.
    """

    sum: jax.Array
    weight: jax.Array


Loss = Callable[[Params, Batch, jax.Array | None], tuple[Weighted, Metrics]]
"""(params, batch, key) to the loss and metrics, as sums; key None disables dropout."""

Measure = Callable[[Params, Batch], Any]
Prepare = Callable[[Batch, jax.Array | None], Batch]


@dataclasses.dataclass(frozen=True)
class PreparedLoss:
    """A loss that computes something from the whole batch before the batch is split.

    Random draws for a row, such as masks, depend on the key and on the row's place in the batch, so
    they would change if the batch were first split into micro-batches with their own keys. Weights
    that are divided by a number of tokens need that of the whole batch. So code that splits a batch
    first calls `prepare` on all of it, with the step's key, which adds what the loss needs. A loss
    prepares an unprepared batch itself, with the same result if the batch is not split.

    Attributes:
        prepare: (batch, key) to the batch with additional arrays [B, ...]; key None, for
            evaluation, always gives the same ones.
        compute: the loss of a prepared batch.
        mark: the name of an array that only prepared batches have.
    """

    prepare: Prepare
    compute: Loss
    mark: str

    def __call__(
        self, params: Params, batch: Batch, key: jax.Array | None
    ) -> tuple[Weighted, Metrics]:
        """The loss, see `Loss`."""
        prepared = batch if self.mark in batch else self.prepare(batch, key)
        return self.compute(params, prepared, key)


@dataclasses.dataclass(frozen=True)
class MeasuredLoss:
    """A loss that reads sums over the whole batch, to which no gradient flows.

    Unlike what `PreparedLoss` prepares, these sums depend on the parameters. So code that splits a
    batch first adds them up over all parts, without dropout or gradient, and then calls the loss
    `given` them. A loss measures a batch that is not split on its own, with no further pass.

    Attributes:
        measure: (params, batch) to a tree of sums.
        compute: (params, batch, key, sums) to the loss and metrics; sums None for the batch's own.
    """

    measure: Measure
    compute: Callable[[Params, Batch, jax.Array | None, Any], tuple[Weighted, Metrics]]

    def given(self, sums: Any) -> Loss:
        """The loss of a part of a batch with these sums."""
        return lambda params, batch, key: self.compute(params, batch, key, sums)

    def __call__(
        self, params: Params, batch: Batch, key: jax.Array | None
    ) -> tuple[Weighted, Metrics]:
        """The loss, see `Loss`."""
        return self.compute(params, batch, key, None)
