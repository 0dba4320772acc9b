"""Pretrains an encoder by masked or replaced tokens within a compute budget."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llmjax import models, objectives, optim, planning, train
from llmjax.objectives import masking
from tools.encoders.data import Data

Objective = Literal["mlm", "rtd"]
OBJECTIVES: tuple[Objective, ...] = ("mlm", "rtd")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes and budgets, the same for both objectives.

    Attributes:
        num_layers: layers of the encoder.
        embed_dim: D.
        num_heads: H.
        length: S.
        batch_size: B, rows of a pretraining step.
        width_share: width of rtd's generator as a share of the encoder's.
        budget: FLOPs of a pretraining run as `planning` counts them, including the generator's.
        checkpoints: evaluated checkpoints, each after twice the compute of the previous one.
        warmup: warmup steps.
        rates: learning rates to choose from, separately for each objective.
        tuning_share: share of the budget for which each rate is tried.
        epochs: epochs of fine-tuning.
        fine_tuning_rate: peak learning rate of fine-tuning.
    """

    num_layers: int = 6
    embed_dim: int = 256
    num_heads: int = 4
    length: int = 128
    batch_size: int = 128
    width_share: float = 0.25
    budget: float = 2e15
    checkpoints: int = 7
    warmup: int = 40
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    tuning_share: float = 0.25
    epochs: int = 3
    fine_tuning_rate: float = 3e-4


class RateState(NamedTuple):
    """The factor of every update."""

    rate: jax.Array


class Point(NamedTuple):
    """A checkpoint: FLOPs and seconds spent so far, the loss, and the encoder's weights."""

    flops: float
    seconds: float
    loss: float
    encoder: Any


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """One objective, compiled once for all seeds and learning rates.

    Attributes:
        objective: name of the objective.
        steps: steps in the whole budget.
        flops_per_step: FLOPs of a step.
        start: maps (key, learning rate) to the initial state.
        step: the step from `train.make_step`.
    """

    objective: Objective
    steps: int
    flops_per_step: float
    start: Callable[[jax.Array, float], train.TrainState]
    step: train.Step

    def run(
        self,
        data: Data,
        settings: Settings,
        seed: int,
        rate: float,
        visit: Callable[[Point], None],
        at: tuple[int, ...],
    ) -> None:
        """Trains until the last step of `at` and calls `visit` after each of these steps."""
        state = self.start(jax.random.key(seed), rate)
        batches = data.batches(seed, settings.batch_size, settings.length)
        if 0 in at:
            visit(Point(0.0, 0.0, float("nan"), self.encoder(state.params)))
        seconds, start = 0.0, time.perf_counter()
        for number in range(1, max(at) + 1):
            state, metrics = self.step(state, jax.tree.map(jnp.asarray, next(batches)))
            if number in at:
                loss = float(metrics["loss"])  # waits for the step
                seconds += time.perf_counter() - start
                flops = number * self.flops_per_step
                visit(Point(flops, seconds, loss, self.encoder(state.params)))
                start = time.perf_counter()

    def encoder(self, params: Any) -> Any:
        """The encoder's weights, without the head."""
        params = params if self.objective == "mlm" else params["discriminator"]
        return {name: node for name, node in params.items() if name != "head"}

    def checkpoints(self, settings: Settings) -> tuple[int, ...]:
        """Step 0, then steps whose compute doubles up to the whole budget."""
        halves = range(settings.checkpoints - 1, -1, -1)
        return (0, *dict.fromkeys(max(1, round(self.steps / 2**half)) for half in halves))


def encoder_config(data: Data, settings: Settings) -> models.ModelConfig:
    """The encoder of both objectives: BERT's, with rotary positions.

    With learned absolute positions, the loss stays at the unigram entropy for most of such a short
    pretraining, and the runs would measure when attention finds neighboring tokens.
    """
    return models.electra(
        position="rope",
        vocab_size=data.vocab_size,
        num_layers=settings.num_layers,
        embed_dim=settings.embed_dim,
        num_heads=settings.num_heads,
        max_length=settings.length,
        dropout=models.Dropout(),
    )


def make(objective: Objective, data: Data, settings: Settings) -> Pretraining:
    """The pretraining of `encoder_config`'s encoder.

    The schedule is `inverse_sqrt`, which does not depend on the number of steps, so each checkpoint
    equals the result of a run with its budget.
    """
    encoder = encoder_config(data, settings)
    hidden: dict[str, Any] = {"mask_id": data.mask_id, "special_ids": data.special_ids}
    if objective == "mlm":
        config = models.with_head(encoder, "mlm")
        spec = models.spec(config)
        loss = objectives.mlm(config, masking.BERT, **hidden)
        flops = planning.mlm_flops(config, settings.length, masking.BERT)
    else:
        config = models.with_head(encoder, "rtd")
        generator = objectives.generator_config(config, settings.width_share)
        spec = objectives.rtd_spec(generator, config)
        loss = objectives.rtd(generator, config, masking.ELECTRA, **hidden)
        flops = planning.rtd_flops(generator, config, settings.length, masking.ELECTRA)
    flops *= settings.batch_size * settings.length
    steps = max(1, round(settings.budget / flops))
    schedule = optim.OptimizerConfig(
        name="muon",
        learning_rate=1.0,
        schedule="inverse_sqrt",
        warmup_steps=settings.warmup,
        beta2=0.98,
        weight_decay=0.01,
    )
    optimizer = optax.chain(optim.make(schedule, spec, steps), _scale_by_rate())
    init = jax.jit(functools.partial(train.init_state, spec=spec, optimizer=optimizer))

    def start(key: jax.Array, rate: float) -> train.TrainState:
        state = init(key)
        opt_state = (state.opt_state[0], RateState(jnp.float32(rate)))
        return dataclasses.replace(state, opt_state=opt_state)

    return Pretraining(objective, steps, flops, start, train.make_step(loss, optimizer))


def _scale_by_rate() -> optax.GradientTransformation:
    """Multiplies updates by a rate in the state, so that another rate needs no recompilation."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda update: state.rate * update, updates), state

    return optax.GradientTransformation(lambda params: RateState(jnp.float32(1.0)), update)
