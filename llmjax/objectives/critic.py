"""Where the values of PPO come from: a model of its own, or a head on the policy's."""

import dataclasses
from typing import Any

import jax

from llmjax import models
from llmjax.objectives.loss import Batch, Params

HEAD = "value_head"  # beside the policy's entries, of a shared backbone


@dataclasses.dataclass(frozen=True)
class Critic:
    """What estimates the return from each token on.

    Attributes:
        config: of a model with a head of kind value, `models.with_head(config, "value")` say.
        shared: whether it is a head on the policy's hidden states. What is trained is then the
            policy's tree with the head in it, "value_head"; else {"policy": ..., "critic": ...}.
            The parameters of a reward model of the same family may start a critic (Ouyang et al.
            2022, appendix C.4): their trees are the same, but for a bias.
    """

    config: models.ModelConfig
    shared: bool = False

    def __post_init__(self) -> None:
        head, causal = self.config.head.kind, self.config.attention.causal
        if head != "value" or not causal:
            raise ValueError(
                f"a critic needs a causal model with head.kind=value, not {head} and "
                f"attention.causal={causal}"
            )

    def spec(self, policy: models.ModelConfig) -> dict[str, Any]:
        """What is trained with a policy: a tree of `Param`.

        Raises:
            ValueError: a shared backbone of another width than the critic's.
        """
        if not self.shared:
            return {"policy": models.spec(policy), "critic": models.spec(self.config)}
        if policy.embed_dim != self.config.embed_dim:
            raise ValueError(
                f"the critic reads hidden states of {self.config.embed_dim} and the policy's have "
                f"{policy.embed_dim}: a shared backbone has one width"
            )
        return models.spec(policy) | {HEAD: models.spec(self.config)["head"]}

    def policy(self, params: Params) -> Params:
        """The policy's parameters, as an ordinary model's, of those that are trained."""
        if not self.shared:
            return params["policy"]
        return {name: node for name, node in params.items() if name != HEAD}

    def values(
        self,
        params: Params,
        batch: Batch,
        hidden: jax.Array | None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """V of the state in which each target is chosen, float32 [B, S].

        Args:
            params: all that is trained.
            batch: int32 [B, S] "tokens", and optionally "segment_ids" and "positions".
            hidden: the policy's, [B, S, D]; only a head on a shared backbone reads them.
            key: dropout key; None disables dropout.
        """
        if self.shared:
            assert hidden is not None
            return models.logits({"head": params[HEAD]}, hidden, self.config, key=key)
        keys = (None, None) if key is None else jax.random.split(key)
        states, _ = models.apply(
            params["critic"],
            batch["tokens"],
            self.config,
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            key=keys[0],
        )
        return models.logits(params["critic"], states, self.config, key=keys[1])


def policy_params(params: Params, critic: Critic | None) -> Params:
    """The policy's parameters of those that are trained; all, where there is no critic."""
    return params if critic is None else critic.policy(params)
