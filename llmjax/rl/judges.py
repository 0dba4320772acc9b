"""Trained reward models as rewards."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llmjax import mesh, models
from llmjax.rl.samples import Sample, parts, rows
from llmjax.sampling.decode import fetch


class ModelReward:
    """Scores prompts with their answers by one or several reward models.

    Args:
        params: parameters of models with the same configuration; the reward is their mean.
        config: their configuration, with a head of kind reward.
        batch_size: rows at a time, a multiple of the devices that share them.
        length: S, of a row.

    Raises:
        ValueError: the models have another head, or rows exceed their maximum length.
    """

    def __init__(
        self, params: Sequence[Any], config: models.ModelConfig, *, batch_size: int, length: int
    ) -> None:
        if config.head.kind != "reward":
            raise ValueError(f"a reward model needs head.kind=reward, not {config.head.kind}")
        if length > config.max_length:
            raise ValueError(
                f"the reward model supports up to {config.max_length} tokens, but rows have "
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
        """The number of models."""
        return len(self._params)

    def __call__(self, samples: Sequence[Sample]) -> np.ndarray:
        """The mean reward of the models, float32 [N]."""
        return self.each(samples).mean(axis=0)

    def each(self, samples: Sequence[Sample]) -> np.ndarray:
        """The reward of each of the M models, float32 [M, N]."""
        whole = rows(samples, self._length)
        names = ("tokens", "segment_ids", "positions")
        found = []
        for part in parts({name: whole[name] for name in names}, self._batch_size):
            batch = mesh.place_batch(part)
            found.append([fetch(self._judge(params, batch)) for params in self._params])
        return np.concatenate(found, axis=1)[:, : len(samples)].astype(np.float32)
