"""What models say of rollouts before the policy is trained on them."""

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
    """Who has a part in what is trained.

    Attributes:
        config: of policy and reference.
        policy: the policy's parameters, of all that there are.
        reference: the reference's, likewise.
        critic: what estimates values, or None.
    """

    config: models.ModelConfig
    policy: Callable[[Any], Any]
    reference: Callable[[Any], Any]
    critic: Critic | None = None


class Estimator:
    """Log-probabilities and values of rows, `batch_size` rows at a time.

    Args:
        players: whose.
        batch_size: rows, a multiple of the devices that share them.
        temperature: of log-probabilities.
    """

    def __init__(self, players: Players, batch_size: int, temperature: float = 1.0) -> None:
        self._batch_size = batch_size

        @functools.partial(jax.jit, static_argnames="again")
        def estimate(params: Any, batch: Mapping[str, jax.Array], again: bool):
            found = {}
            own = None
            if again or (players.critic is not None and players.critic.shared):
                own = log_probs(
                    players.policy(params), batch, players.config, temperature=temperature
                )
            if again:
                assert own is not None
                found["old_log_probs"] = own.targets
            reference = log_probs(
                players.reference(params), batch, players.config, temperature=temperature
            )
            found["reference_log_probs"] = reference.targets
            if players.critic is not None:
                hidden = None if own is None else own.output.hidden
                found["old_values"] = players.critic.values(params, batch, hidden)
            return found

        self._estimate = estimate

    def __call__(self, params: Any, rows: Rows, *, again: bool) -> Rows:
        """The rows with "reference_log_probs", "old_values" of a critic, and "old_log_probs".

        Args:
            params: all that there are.
            rows: from `samples.rows`; the same on every process.
            again: whether the policy's own log-probabilities are computed, rather than taken from
                the sampler: where these are of another temperature or rounded otherwise.
        """
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
