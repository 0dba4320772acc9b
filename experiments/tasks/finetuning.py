"""Supervised fine-tuning as a task: answers, or labels of texts."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import jax

from experiments.flags import FlagError
from experiments.recipe import require_not_negative
from experiments.tasks.task import Batch
from experiments.tasks.tuning import Tuning, TuningTask
from llmjax import evaluation, mesh, models, objectives, planning, sampling
from llmjax.data.config import Kind
from llmjax.objectives import Loss
from llmjax.train import metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning(Tuning):
    """Supervised fine-tuning: of answers to instructions and in conversations, or of plain text.

    Attributes:
        packing: best_fit puts several examples into a row, each blind to the others; none gives
            each a row of its own.
        label_smoothing: share of each target's probability spread over the vocabulary.
        z_loss: weight of the penalty on log² of the softmax normaliser (PaLM, section 5).
        sample_every: steps between samples; 0 means only at the end.
        sample_prompt: what the user says in samples.
        sample_tokens: tokens of a sample.
    """

    packing: Literal["best_fit", "none"] = "best_fit"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    sample_every: int = 0
    sample_prompt: str = "Hi! How are you?"
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "z_loss", "sample_every", "sample_tokens")


class FinetuningTask(TuningTask):
    """A causal model learns what the assistant says."""

    kind: ClassVar[Kind] = "sft"
    recipe: Finetuning

    def configure(self, config: models.ModelConfig) -> models.ModelConfig:
        """The model as it is."""
        if config.head.kind != "lm":
            raise FlagError(
                f"--base={self.recipe.base}: a model with a head of kind {config.head.kind} does "
                "not write; name one that predicts next tokens"
            )
        return config

    def row_options(self) -> dict[str, Any]:
        """How rows are filled."""
        return {"packing": self.recipe.packing}

    def make_loss(self, *, plain: bool = False) -> Loss:
        """That of next tokens, over the targets that rows have."""
        if plain:
            return objectives.clm(self.config)
        recipe = self.recipe
        return objectives.clm(
            self.config, label_smoothing=recipe.label_smoothing, z_loss=recipe.z_loss
        )

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Perplexity of the answers."""
        token_bytes = self.tokenizer().token_bytes
        return evaluation.evaluate(self.plain_loss, params, batches, token_bytes)

    @property
    def sample_every(self) -> int | None:
        """By the recipe."""
        return self.recipe.sample_every

    def sample(self, params: Any) -> tuple[str, str]:
        """What the model answers."""
        said = self.recipe.sample_prompt
        tokens, _ = self.template.encode(
            [{"role": "user", "content": said}], add_generation_prompt=True
        )
        with jax.set_mesh(mesh.for_decoding(jax.sharding.get_mesh())):
            written = sampling.generate(
                params,
                [tokens],
                self.config,
                jax.random.key(self.recipe.seed),
                max_new_tokens=self.recipe.sample_tokens,
                sampler=sampling.SamplerConfig(temperature=0.8, top_p=0.95),
                stop_tokens=self.template.stop_ids,
            )
        return said, self.tokenizer().decode(written.tokens[0, : written.lengths[0]].tolist())

    def throughput(self) -> metrics.Throughput:
        """By tokens that are read, whether or not they are targets."""
        if self.trained is not None:
            return super().throughput()
        return metrics.Throughput(
            planning.training_flops(self.config, self.recipe.sequence_length),
            planning.peak_flops(jax.devices()),
            counted="inputs",
            chips=jax.device_count(),
        )
