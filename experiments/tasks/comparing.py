"""Tasks with comparisons: training a reward model, or directly a policy."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import jax

from experiments.flags import FlagError
from experiments.tasks.task import Batch
from experiments.tasks.tuning import Tuning, TuningTask
from llmjax import data, evaluation, models, objectives
from llmjax.data.config import Kind
from llmjax.objectives import Loss, PreferenceConfig, RewardConfig
from llmjax.train.report import REWARD_FILE


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModelling(Tuning):
    """A reward model, from comparisons of answers.

    Attributes:
        reward: options of the loss.
        responses: maximum number of answers compared at once.
    """

    reward: RewardConfig = RewardConfig()
    responses: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferring(Tuning):
    """A policy, from comparisons of answers or from judged ones, without a reward model.

    Attributes:
        preference: the loss: DPO or one of its variants.
        responses: maximum number of answers compared at once.
    """

    preference: PreferenceConfig = PreferenceConfig()
    responses: int = 2


def _require_responses(task: "RewardTask | PreferenceTask") -> None:
    """Raises FlagError if a comparison has more answers than the loss reads."""
    about = data.load_manifest(task.directory()).examples
    if about is not None and about.kind == "comparison" and about.responses > task.recipe.responses:
        raise FlagError(
            f"--responses={task.recipe.responses}: a comparison has {about.responses} answers; set "
            f"it to {about.responses}"
        )


class RewardTask(TuningTask):
    """Trains a model with a head of kind reward on comparisons."""

    kind: ClassVar[Kind] = "comparison"
    recipe: RewardModelling

    def configure(self, config: models.ModelConfig) -> models.ModelConfig:
        """The base's configuration with a head of kind reward."""
        return models.with_head(config, "reward")

    @property
    def room(self) -> int:
        """A row holds all sequences of a comparison."""
        return self.recipe.sequence_length // self.recipe.responses

    def prepare(self) -> None:
        """Tokenizes comparisons."""
        super().prepare()
        _require_responses(self)

    def make_loss(self, *, plain: bool = False) -> Loss:
        """The Bradley-Terry loss; without centring in evaluations."""
        settings = RewardConfig(ranking=self.recipe.reward.ranking) if plain else self.recipe.reward
        return objectives.reward(self.config, settings, responses=self.recipe.responses)

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy and margin on comparisons."""
        return evaluation.evaluate_means(self.plain_loss, params, batches)

    def report(self, params: Any, batches: Iterable[Batch]) -> evaluation.RewardReport:
        """Calibration and length bias; may also write RUN_DIR/reward_report.json."""
        found = evaluation.evaluate_reward(
            self.config, params, batches, responses=self.recipe.responses
        )
        if self.keeps and jax.process_index() == 0:
            found.save(self.run_dir / REWARD_FILE)
        return found


class PreferenceTask(TuningTask):
    """Trains a policy on preferences."""

    recipe: Preferring

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """The kind of examples that the loss needs."""
        return "judged" if self.recipe.preference.kind == "kto" else "comparison"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads a reference."""
        return self.recipe.preference.needs_reference

    @property
    def room(self) -> int:
        """A row holds all sequences of a comparison, or a judged answer and an unrelated one."""
        return self.recipe.sequence_length // (
            2 if self.kind == "judged" else self.recipe.responses
        )

    def prepare(self) -> None:
        """Tokenizes comparisons or judged answers."""
        super().prepare()
        _require_responses(self)

    def make_loss(self, *, plain: bool = False) -> Loss:
        """The recipe's loss, also in evaluations."""
        recipe, reference = self.recipe, self.reference if self.needs_reference else None
        return objectives.preference(
            self.config, recipe.preference, reference=reference, responses=recipe.responses
        )

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy and margin of implicit rewards on comparisons."""
        return evaluation.evaluate_means(self.plain_loss, params, batches)
