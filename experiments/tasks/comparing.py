"""Comparisons as tasks: a reward model learns which answer is better, or a policy at once."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from experiments.flags import FlagError
from experiments.tasks.task import Batch
from experiments.tasks.tuning import REFERENCE, Tuning, TuningTask
from llmjax import data, evaluation, models, objectives, peft
from llmjax.data.config import Kind
from llmjax.objectives import Loss, PreferenceConfig, RewardConfig
from llmjax.train.report import REWARD_FILE


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModelling(Tuning):
    """A reward model, from comparisons of answers.

    Attributes:
        reward: how comparisons become a loss.
        responses: the most answers that are compared at once.
    """

    reward: RewardConfig = RewardConfig()
    responses: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferring(Tuning):
    """A policy, from comparisons of answers or from judged ones, without a reward model.

    Attributes:
        preference: the loss: DPO or one of its relatives.
        responses: the most answers that are compared at once.
    """

    preference: PreferenceConfig = PreferenceConfig()
    responses: int = 2


def _require_room(task: "RewardTask | PreferenceTask") -> None:
    """Raises FlagError where a comparison has more answers than the loss reads."""
    about = data.load_manifest(task.directory()).examples
    if about is not None and about.kind == "comparison" and about.responses > task.recipe.responses:
        raise FlagError(
            f"--responses={task.recipe.responses}: a comparison has {about.responses} answers; set "
            f"it to {about.responses}"
        )


class RewardTask(TuningTask):
    """A model with a head of kind reward learns which answer is better."""

    kind: ClassVar[Kind] = "comparison"
    recipe: RewardModelling

    def configure(self, config: models.ModelConfig) -> models.ModelConfig:
        """With another head."""
        return models.with_head(config, "reward")

    def prepare(self) -> None:
        """Turns comparisons into tokens."""
        super().prepare()
        _require_room(self)

    def make_loss(self, *, plain: bool = False) -> Loss:
        """Bradley and Terry's; in evaluations without the centring."""
        settings = RewardConfig(ranking=self.recipe.reward.ranking) if plain else self.recipe.reward
        return objectives.reward(self.config, settings, responses=self.recipe.responses)

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """How many comparisons are right, and by how much."""
        return evaluation.evaluate_means(self.plain_loss, params, batches)

    def report(self, params: Any, batches: Iterable[Batch]) -> evaluation.RewardReport:
        """Calibration, and what lengths have to do with it; RUN_DIR/reward_report.json keeps it."""
        found = evaluation.evaluate_reward(
            self.config, params, batches, responses=self.recipe.responses
        )
        if jax.process_index() == 0:
            found.save(self.run_dir / REWARD_FILE)
        return found


class PreferenceTask(TuningTask):
    """A policy learns to write what is preferred.

    The reference is the policy without what was added to it; where the policy is trained as a
    whole, a frozen copy beside it.
    """

    recipe: Preferring

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """Of the loss."""
        return "judged" if self.recipe.preference.kind == "kto" else "comparison"

    def __init__(self, recipe: Preferring, run_dir: pathlib.Path) -> None:
        super().__init__(recipe, run_dir)
        if self._has_copy():
            self.spec = self.spec | {REFERENCE: models.spec(self.config)}
            own = self.trained
            self.trained = lambda path, leaf: (
                not path.startswith(f"{REFERENCE}/") and (own is None or own(path, leaf))
            )

    def _has_copy(self) -> bool:
        return self.recipe.preference.needs_reference and self.recipe.peft.name == "full"

    def prepare(self) -> None:
        """Turns comparisons, or judged answers, into tokens."""
        super().prepare()
        _require_room(self)

    def make_loss(self, *, plain: bool = False) -> Loss:
        """That of the recipe; evaluations are of the same."""
        recipe, reference = self.recipe, None
        if recipe.preference.needs_reference:
            reference = self.reference
        return objectives.preference(
            self.config, recipe.preference, reference=reference, responses=recipe.responses
        )

    def reference(self, params: Any) -> Any:
        """The reference's parameters."""
        return params[REFERENCE] if self._has_copy() else peft.without(params, self.model_spec)

    def complete(self, params: Any) -> Any:
        """With the copy that is the reference."""
        return params | {REFERENCE: jax.tree.map(jnp.copy, params)} if self._has_copy() else params

    def own(self, params: Any) -> Any:
        """The policy alone."""
        return {name: node for name, node in params.items() if name != REFERENCE}

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """How many comparisons are right by implicit rewards, and by how much."""
        return evaluation.evaluate_means(self.plain_loss, params, batches)
