"""Trained reward models as rewards."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llmjax import mesh, models
from llmjax.rl.samples import Sample, parts, rows
from llmjax.sampling.decode import fetch


class ModelReward:
    """What a reward model says of prompts with their answers, at their last token.

    Args:
        params: of one or several models of one configuration; the reward is their mean.
        config: theirs, with a head of kind reward.
        batch_size: rows at a time, a multiple of the devices that share them.
        length: S, of a row.

    Raises:
        ValueError: another head, or rows longer than the model's.
    """

    def __init__(
        self, params: Sequence[Any], config: models.ModelConfig, *, batch_size: int, length: int
    ) -> None:
        if config.head.kind != "reward":
            raise ValueError(
                f"a reward model has a head of kind reward, and this one {config.head.kind}"
            )
        if length > config.max_length:
            raise ValueError(
                f"the reward model was made for up to {config.max_length} tokens, and rows have "
                f"{length}"
            )
        self._params, self._batch_size, self._length = list(params), batch_size, length

        @jax.jit
        def judge(params, batch):
            hidden, _ = models.apply(
                params,
                batch["tokens"],
                config,
                segment_ids=batch["segment_ids"],
                positions=batch["positions"],
            )
            found, _ = models.segment_rewards(params, hidden, config, batch["segment_ids"], 1)
            return found[:, 0]

        self._judge = judge

    @property
    def count(self) -> int:
        """How many models there are."""
        return len(self._params)

    def __call__(self, samples: Sequence[Sample]) -> np.ndarray:
        """Float32 [N]."""
        return self.each(samples).mean(axis=0)

    def each(self, samples: Sequence[Sample]) -> np.ndarray:
        """What each of the M models says, float32 [M, N]."""
        whole = rows(samples, self._length)
        names = ("tokens", "segment_ids", "positions")
        found = []
        for part in parts({name: whole[name] for name in names}, self._batch_size):
            batch = mesh.place_batch(part)
            found.append([fetch(self._judge(params, batch)) for params in self._params])
        return np.concatenate(found, axis=1)[:, : len(samples)].astype(np.float32)
