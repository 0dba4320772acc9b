"""Log-probabilities and values of rollouts, computed before the policy is trained on them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from llmjax import mesh, models
from llmjax.objectives import Critic, log_probs
from llmjax.rl import samples
from llmjax.sampling.decode import fetch

Rows = dict[str, np.ndarray]


class Players(NamedTuple):
    """How to select each model's parameters from all parameters, trained and frozen.

    Attributes:
        config: model configuration of policy and reference.
        policy: from all parameters to the policy's.
        reference: from all parameters to the reference's; None if nothing depends on it.
        critic: estimates values, or None.
    """

    config: models.ModelConfig
    policy: Callable[[Any], Any]
    reference: Callable[[Any], Any] | None
    critic: Critic | None = None


class Estimator:
    """Computes log-probabilities and values of rows, `batch_size` rows at a time.

    Args:
        players: the models.
        batch_size: rows, a multiple of the devices that share them.
        temperature: temperature of log-probabilities.
        most_targets: maximum number of targets in a row; see `log_probs`.
    """

    def __init__(
        self,
        players: Players,
        batch_size: int,
        temperature: float = 1.0,
        most_targets: int | None = None,
    ) -> None:
        self._batch_size, self._players = batch_size, players
        score = functools.partial(
            log_probs, config=players.config, temperature=temperature, most_targets=most_targets
        )

        @functools.partial(jax.jit, static_argnames="again")
        def estimate(params: Any, batch: Mapping[str, jax.Array], again: bool):
            found = {}
            own = None
            if again or (players.critic is not None and players.critic.shared):
                own = score(players.policy(params), batch)
            if again:
                assert own is not None
                found["old_log_probs"] = own.targets
            if players.reference is not None:
                found["reference_log_probs"] = score(players.reference(params), batch).targets
            if players.critic is not None:
                hidden = None if own is None else own.output.hidden
                found["old_values"] = players.critic.values(params, batch, hidden)
            return found

        self._estimate = estimate

    def __call__(self, params: Any, rows: Rows, *, again: bool) -> Rows:
        """Adds "reference_log_probs", "old_values" and "old_log_probs" to rows, as far as needed.

        Args:
            params: all parameters.
            rows: from `samples.rows`; the same on every process.
            again: whether to recompute the policy's log-probabilities, because those of the sampler
                have another temperature or are rounded differently.
        """
        if not again and self._players.reference is None and self._players.critic is None:
            return rows
        names = ("tokens", "targets", "segment_ids", "positions")
        read = {name: rows[name] for name in names}
        made = [
            self._estimate(params, mesh.place_batch(part), again)
            for part in samples.parts(read, self._batch_size)
        ]
        count = len(rows["tokens"])
        found = {
            name: np.concatenate([fetch(part[name]) for part in made])[:count] for name in made[0]
        }
        return rows | found
