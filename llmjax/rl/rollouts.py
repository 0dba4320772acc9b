"""Rollouts: sampling a policy's answers to prompts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from llmjax import mesh, models, peft, sampling
from llmjax import spec as specs
from llmjax.checks import require_at_least
from llmjax.rl.samples import Prompt, Sample


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How a policy's answers are sampled.

    Attributes:
        prompts: prompts per iteration.
        samples: answers per prompt; methods that compare them need 2 or more.
        max_new_tokens: answers that have not ended are cut off at this length.
        temperature: divides the logits; ratios and divergences use the same temperature.
        top_k: samples from that many of the most likely tokens; 0 from all. Ratios ignore filters,
            so with top_k or top_p the trained policy differs slightly from the one that sampled.
        top_p: samples from the most likely tokens with this total probability; 1 from all.
    """

    prompts: int = 16
    samples: int = 1
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_at_least(1, self, "rollouts", ("prompts", "samples", "max_new_tokens"))
        if not self.temperature > 0:
            raise ValueError(
                f"rollouts.temperature={self.temperature}: must be above 0, as a policy explores"
            )
        self.sampler()

    def sampler(self) -> sampling.SamplerConfig:
        """The sampler configuration."""
        return sampling.SamplerConfig(self.temperature, self.top_k, self.top_p)


class Writer:
    """Generates answers.

    Args:
        config: model configuration of the policy.
        decode: from tokens of an answer to text.
        settings: sampling options.
        stops: what ends an answer, each a token id or a sequence of ids.
        spec: spec of the policy's parameters; needed on meshes with stages or context, where
            decoding uses another mesh.
    """

    def __init__(
        self,
        config: models.ModelConfig,
        decode: Callable[[list[int]], str],
        settings: RolloutConfig,
        stops: Sequence[int | Sequence[int]],
        spec: Any = None,
    ) -> None:
        self.config, self.settings = config, settings
        self._decode, self._spec = decode, spec
        self._stops = [(stop,) if isinstance(stop, int) else tuple(stop) for stop in stops]

    def ready(self, params: Any) -> Any:
        """A policy's parameters for decoding: adapters merged, and laid out."""
        current = jax.sharding.get_mesh()
        other = mesh.for_decoding(current)
        with jax.set_mesh(other):
            if other != current:
                params = specs.move(params, self._spec)
            return models.for_decoding(peft.merge(params), self.config)

    def __call__(
        self,
        params: Any,
        prompts: Sequence[Prompt],
        key: jax.Array,
        *,
        samples: int | None = None,
        sampler: sampling.SamplerConfig | None = None,
    ) -> list[Sample]:
        """Generates answers to prompts; the answers to a prompt are adjacent.

        Args:
            params: the policy's parameters, from `ready`.
            prompts: the prompts.
            key: a typed PRNG key.
            samples: answers per prompt; by default as in the settings.
            sampler: sampler configuration; by default as in the settings.
        """
        samples = samples or self.settings.samples
        data, kind = jax.device_get(jax.random.key_data(key)), jax.random.key_impl(key)
        with jax.set_mesh(mesh.for_decoding(jax.sharding.get_mesh())):
            written = sampling.generate(
                params,
                [prompt.tokens.tolist() for prompt in prompts],
                self.config,
                jax.random.wrap_key_data(data, impl=kind),  # on this mesh
                max_new_tokens=self.settings.max_new_tokens,
                sampler=sampler or self.settings.sampler(),
                stop_tokens=self._stops,
                samples=samples,
            )
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        return [
            self._sample(prompt, tokens[:length], log_probs[:length])
            for prompt, tokens, length, log_probs in zip(
                repeated, written.tokens, written.lengths, written.log_probs, strict=True
            )
        ]

    def _sample(self, prompt: Prompt, tokens: np.ndarray, log_probs: np.ndarray) -> Sample:
        ids = tokens.tolist()
        ends = [len(stop) for stop in self._stops if tuple(ids[-len(stop) :]) == stop]
        text = self._decode(ids[: len(ids) - max(ends, default=0)])
        return Sample(prompt, tokens.astype(np.int32), text, log_probs, bool(ends))
