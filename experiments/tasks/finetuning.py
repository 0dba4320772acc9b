"""Tasks of supervised fine-tuning, on answers or on labels of texts."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import jax

from experiments.recipe import require, require_not_negative
from experiments.tasks.task import Batch
from experiments.tasks.tuning import Tuning, TuningTask
from llmjax import evaluation, models, objectives, planning
from llmjax.data.config import Kind
from llmjax.objectives import ClassificationConfig, Loss
from llmjax.train import metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning(Tuning):
    """Supervised fine-tuning.

    Attributes:
        objective: what is learned: sft, answers to instructions and in conversations, or plain
            text; classification, labels of texts.
        classification: options of the classification loss.
        packing: for sft, best_fit packs several examples into a row, which do not see each other;
            none uses one row per example.
        label_smoothing: for sft, share of each target's probability spread over the vocabulary.
        z_loss: for sft, weight of the penalty on log² of the softmax normalizer (PaLM, section 5).
        sample_every: for sft, steps between samples; 0 means only at the end.
        sample_prompt: the user's message in samples.
        sample_tokens: tokens per sample; 0 for no samples.
    """

    objective: Literal["sft", "classification"] = "sft"
    classification: ClassificationConfig = ClassificationConfig()
    packing: Literal["best_fit", "none"] = "best_fit"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    sample_every: int = 0
    sample_prompt: str = "Hi! How are you?"
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "z_loss", "sample_every", "sample_tokens")
        require(
            0.0 <= self.label_smoothing < 1.0,
            f"label_smoothing={self.label_smoothing}: must be in [0, 1)",
        )
        ignored = ("classification",) if self.objective == "sft" else ("label_smoothing", "z_loss")
        for name in ignored:
            require(
                getattr(self, name) == getattr(Finetuning, name),
                f"{name} is not for objective={self.objective}: leave it out",
            )
        require(
            self.objective == "sft" or len(self.data.labels) > 1,
            f"data.labels={','.join(self.data.labels)}: name the labels, at least two, in order of "
            "their numbers",
        )


def finetuning(recipe: Finetuning, run_dir: pathlib.Path) -> TuningTask:
    """The task of a recipe."""
    task = AnswerTask if recipe.objective == "sft" else LabelTask
    return task(recipe, run_dir)


class AnswerTask(TuningTask):
    """Trains a causal model on the assistant's turns."""

    kind: ClassVar[Kind] = "sft"
    recipe: Finetuning

    def row_options(self) -> dict[str, Any]:
        """The packing of rows."""
        return {"packing": self.recipe.packing}

    def make_loss(self, *, plain: bool = False) -> Loss:
        """The next-token loss over the rows' targets."""
        if plain:
            return objectives.clm(self.config)
        recipe = self.recipe
        return objectives.clm(
            self.config, label_smoothing=recipe.label_smoothing, z_loss=recipe.z_loss
        )

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Loss and perplexity of the answers."""
        token_bytes = self.tokenizer().token_bytes
        return evaluation.evaluate(self.plain_loss, params, batches, token_bytes)

    @property
    def sample_every(self) -> int | None:
        """The recipe's interval, or None without samples."""
        return self.recipe.sample_every if self.recipe.sample_tokens else None

    def sample(self, params: Any) -> tuple[str, str]:
        """A prompt and the model's answer."""
        said = self.recipe.sample_prompt
        tokens, _ = self.template.encode(
            [{"role": "user", "content": said}], add_generation_prompt=True
        )
        count = self.recipe.sample_tokens
        return said, self.continued(params, tokens.tolist(), count, self.template.stops)

    def throughput(self) -> metrics.Throughput:
        """Throughput in tokens read, whether or not they are targets."""
        if self.trained is not None:
            return super().throughput()
        return metrics.Throughput(
            planning.training_flops(self.config, self.recipe.sequence_length),
            planning.peak_flops(jax.devices()),
            counted="inputs",
            chips=jax.device_count(),
        )


class LabelTask(TuningTask):
    """Trains a model with a head of kind classification."""

    kind: ClassVar[Kind] = "classification"
    recipe: Finetuning
    _confusion: evaluation.Confusion | None = None  # of the last evaluation

    @property
    def labels(self) -> tuple[str, ...]:
        """The recipe's labels."""
        return self.recipe.data.labels

    def configure(self, config: models.ModelConfig) -> models.ModelConfig:
        """The base's configuration with a head of kind classification."""
        return models.with_head(config, "classification", labels=len(self.recipe.data.labels))

    def make_loss(self, *, plain: bool = False) -> Loss:
        """The classification loss; evaluations add the confusion matrix."""
        if plain:
            return objectives.classification(self.config, confusion=True)
        return objectives.classification(self.config, self.recipe.classification)

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy, macro F1 and Matthews correlation; may also write RUN_DIR/confusion.json."""
        found, self._confusion = evaluation.evaluate_classification(
            self.plain_loss, params, batches, self.labels
        )
        if self.keeps and jax.process_index() == 0 and self.run_dir.is_dir():
            self._confusion.save(self.run_dir / "confusion.json")
        return found

    def report(self, params: Any, batches: Iterable[Batch]) -> evaluation.Confusion | None:
        """The confusion matrix of the last evaluation."""
        del params, batches
        return self._confusion
