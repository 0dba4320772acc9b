"""Fine-tuning and reinforcement learning in llmjax, as turns."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import models, objectives, optim, peft, rl, train, tree
from llmjax import spec as specs
from tools.benchmark.settings import Settings

Turn = Callable[[], float | None]


def lora(settings: Settings, corrections: peft.LoraConfig, batch: dict[str, jax.Array]) -> Turn:
    """A LoRA training step over a frozen base."""
    spec = peft.lora.spec(settings.spec, corrections)
    trained = peft.trained(spec)
    optimizer = optim.make(settings.optimizer, tree.partition(spec, trained)[0], settings.steps)
    params = specs.init(jax.random.key(settings.seed), spec)
    state = train.start_state(jax.random.key(1), params, optimizer, trained)
    step = train.make_step(settings.loss, optimizer)

    def turn() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(state.params)
        return float(metrics["loss"])

    return turn


def reinforce(
    settings: Settings, *, answers: int, prompt_tokens: int, new_tokens: int, ppo: bool
) -> Turn:
    """An iteration: rollouts, rewards, log-probabilities and values, and an epoch of one step.

    Args:
        settings: the policy's settings.
        answers: number per iteration; GRPO has four per prompt.
        prompt_tokens: length of each prompt.
        new_tokens: length of each answer.
        ppo: PPO with a critic of the policy's size and a reference model; otherwise GRPO without a
            reference model.
    """
    config, samples = settings.model, 1 if ppo else 4
    critic = objectives.Critic(models.with_head(config, "value")) if ppo else None
    key = jax.random.key(settings.seed)
    spec = critic.spec(config) if critic else models.spec(config)
    if ppo:
        spec |= {"reference": models.spec(config)}
    params = specs.init(key, spec)
    trained: tree.Predicate = lambda path, leaf: not path.startswith("reference")  # noqa: E731
    trained_spec = tree.partition(spec, trained)[0]
    optimizer = optim.make(settings.optimizer, trained_spec, settings.steps)
    state = train.start_state(key, params, optimizer, trained)
    loss = objectives.policy(config, critic=critic, most_targets=new_tokens)
    step = train.make_step(loss, optimizer)
    rollouts = rl.RolloutConfig(answers // samples, samples, new_tokens)
    experience = rl.Experience(
        _Prompts(answers // samples, prompt_tokens, config.vocab_size),
        rl.Writer(config, lambda tokens: "", rollouts, stops=()),
        rl.Players(
            config,
            functools.partial(_policy, critic),
            (lambda tree: tree["reference"]) if ppo else None,
            critic,
        ),
        {"low": rl.WeightedReward(_low)},
        rl.Credit(
            rl.LearningConfig("gae" if ppo else "grpo", epochs=1), rl.KLConfig(0.05 if ppo else 0.0)
        ),
        batch_size=answers,
        length=prompt_tokens + new_tokens,
        seed=0,
        steps=1 << 30,
    )

    def turn() -> float:
        nonlocal state
        experience.make(state, int(state.step))
        batch = {name: jnp.asarray(values) for name, values in next(experience).items()}
        state, metrics = step(state, batch)
        jax.block_until_ready(state.params)
        return float(metrics["loss"])

    return turn


def _policy(critic: objectives.Critic | None, params: Any) -> Any:
    found = objectives.policy_params(params, critic)
    return {name: node for name, node in found.items() if name != "reference"}


def _low(samples: Sequence[rl.Sample]) -> np.ndarray:
    """The share of small token ids, a cheap reward."""
    return np.array([np.mean(sample.tokens < 4096) for sample in samples])


class _Prompts(Iterator[list[rl.Prompt]]):
    """Random prompts."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self._draw = np.random.default_rng(0)
        self._shape, self._vocabulary = (count, length), vocabulary

    def __next__(self) -> list[rl.Prompt]:
        rows = self._draw.integers(4, self._vocabulary, self._shape).astype(np.int32)
        return [rl.Prompt(row, "") for row in rows]
