"""The task of pretraining: a recipe's model learns from documents."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax

from experiments import objective
from experiments.flags import FlagError
from experiments.recipe import Recipe, data_config
from experiments.tasks.task import Batch, Task, mixed
from llmjax import data, mesh, models, planning, train
from llmjax import spec as specs
from llmjax.data.cleaning import engines
from llmjax.objectives import Loss
from llmjax.train import metrics


class Pretraining(Task):
    """Trains a recipe's model from scratch."""

    recipe: Recipe

    def __init__(self, recipe: Recipe, run_dir: pathlib.Path) -> None:
        self.recipe, self.run_dir, self.config = recipe, run_dir, recipe.model
        self.spec = objective.param_spec(recipe)

    def directory(self) -> pathlib.Path:
        """The folder of tokenizer and shards."""
        return pathlib.Path(self.recipe.data.directory or self.run_dir / "data")

    def prepare(self) -> None:
        """Prepares the recipe's text."""
        prepare(self.recipe, self.directory(), engines.Local(workers=0))

    def tokenizer(self) -> data.Tokenizer:
        """The tokenizer of the text."""
        return data.load_tokenizer(self.directory())

    def start(self, optimizer: Any) -> train.TrainState:
        """The state with new parameters, from the recipe's seed."""
        return train.init_state(jax.random.key(self.recipe.seed), self.spec, optimizer)

    def make_loss(self, *, plain: bool = False) -> Loss:
        """See `objective.make_loss`."""
        return objective.make_loss(self.recipe, self.tokenizer(), plain=plain)

    def batches(
        self,
        split: data.SplitName,
        *,
        directory: pathlib.Path | None = None,
        batch_size: int | None = None,
    ) -> Iterable[Batch]:
        """Packed documents."""
        index, count = mesh.row_share()
        directory = directory or self.directory()
        return data.batches(
            directory,
            split=split,
            weights=self._weights(directory) if split == "train" else None,
            batch_size=batch_size or self.recipe.batch_size,
            sequence_length=self.recipe.sequence_length,
            seed=self.recipe.seed,
            packing=self.recipe.packing,
            process_index=index,
            process_count=count,
        )

    def _weights(self, directory: pathlib.Path) -> dict[str, float] | None:
        """The sources' shares of the tokens; None to use their weights unchanged."""
        recipe = self.recipe
        tokens = recipe.steps * recipe.batch_size * recipe.sequence_length
        return mixed(directory, recipe.data.mixture, tokens)

    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """See `objective.evaluate`."""
        return objective.evaluate(self.recipe, self.plain_loss, params, batches, self.tokenizer())

    def trained_models(self, params: Any) -> dict[str, tuple[models.ModelConfig, Any]]:
        """See `objective.trained_models`."""
        return objective.trained_models(self.recipe, params)

    def load(self, restore: Callable[[Any], Any]) -> tuple[Any, int] | None:
        """Loads the parameters, all of which are in the checkpoint."""
        found = restore({"params": specs.abstract(self.spec)})
        return None if found is None else (found.state["params"], found.step)

    @property
    def sample_every(self) -> int | None:
        """The recipe's interval; None unless the objective is clm."""
        writes = self.recipe.objective == "clm" and self.recipe.sample_tokens
        return self.recipe.sample_every if writes else None

    def sample(self, params: Any) -> tuple[str, str]:
        """The recipe's prompt and the model's continuation."""
        prompt, tokenizer = self.recipe.sample_prompt, self.tokenizer()
        # Without a bos token, a document begins after the end of another.
        tokens = [*tokenizer.opening, *tokenizer.encode(prompt)] or [tokenizer.eos_id]
        count = self.recipe.sample_tokens
        return prompt, self.continued(params, tokens, count, tokenizer.stop_ids)

    def throughput(self) -> metrics.Throughput:
        """Throughput in targets for clm; in inputs for the others, which have few targets."""
        return metrics.Throughput(
            objective.training_flops(self.recipe),
            planning.peak_flops(jax.devices()),
            counted="tokens" if self.recipe.objective == "clm" else "inputs",
            chips=jax.device_count(),
        )


def prepare(
    recipe: Recipe, directory: pathlib.Path, engine: engines.Engine | None = None
) -> data.Manifest:
    """Prepares the recipe's data in a folder, unless done; `engine` cleans the text.

    Raises:
        FlagError: the settings name no text, or text that cannot be used.
    """
    try:
        config = data_config(recipe, directory / "corpus")
        scorer = None
        if "perplexity" in config.cleaning.names:
            from experiments import scoring  # here, as it imports runs, which import tasks

            scorer = scoring.RunScorer(config.cleaning.perplexity.model)
        return data.prepare(config, directory, engine=engine, scorer=scorer)
    except (ValueError, OSError, ImportError) as error:
        raise FlagError(str(error)) from error
