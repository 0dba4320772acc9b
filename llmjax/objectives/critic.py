"""PPO's critic: a separate model, or a value head on the policy's backbone."""

import dataclasses
from typing import Any

import jax

from llmjax import models
from llmjax.objectives.loss import Batch, Params

HEAD = "value_head"  # name of a shared critic's head among the policy's parameters


@dataclasses.dataclass(frozen=True)
class Critic:
    """Estimates the return from each token on.

    Attributes:
        config: a model with a head of kind value, such as `models.with_head(config, "value")`.
        shared: whether the critic is a head on the policy's hidden states. The trained tree is then
            the policy's with an entry "value_head"; otherwise {"policy": ..., "critic": ...}.
            A critic can be initialized from a reward model of the same family (Ouyang et al. 2022,
            appendix C.4): their trees are the same except for a bias.
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
        """The tree of `Param` that is trained, including the policy.

        Raises:
            ValueError: a shared backbone does not have the critic's width.
        """
        if not self.shared:
            return {"policy": models.spec(policy), "critic": models.spec(self.config)}
        if policy.embed_dim != self.config.embed_dim:
            raise ValueError(
                f"the critic reads hidden states of width {self.config.embed_dim}, but the "
                f"policy's have {policy.embed_dim}: a shared backbone needs equal widths"
            )
        return models.spec(policy) | {HEAD: models.spec(self.config)["head"]}

    def policy(self, params: Params) -> Params:
        """The policy's parameters out of the trained ones, as those of an ordinary model."""
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
        """The value of the state in which each target is chosen, float32 [B, S].

        Args:
            params: all trained parameters.
            batch: int32 [B, S] "tokens", and optionally "segment_ids" and "positions".
            hidden: the policy's hidden states [B, S, D]; only read with a shared backbone.
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
    """The policy's parameters out of the trained ones; all of them without a critic."""
    return params if critic is None else critic.policy(params)
