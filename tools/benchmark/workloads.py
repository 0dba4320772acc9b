"""What is timed: a recipe's shapes, and the kind of work that is done with them."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal

from experiments.recipe import Recipe
from experiments.recipes import RECIPES
from llmjax import planning
from llmjax import spec as specs
from llmjax.models import spec as model_spec

Kind = Literal["train", "eval", "decode", "data"]


@dataclasses.dataclass(frozen=True)
class Workload:
    """One line of the benchmark. A turn is one unit of its work.

    Attributes:
        name: as on the command line.
        recipe: whose shapes it has.
        kind: of a turn: train, an optimizer step; eval, the loss of a batch; decode, greedy
            generation behind random prompts; data, `data_batches` batches from the loader.
        decode_rows: prompts that are continued together.
        prompt_tokens: length of each.
        new_tokens: what is generated behind each.
        data_batches: batches in a turn.
    """

    name: str
    recipe: str
    kind: Kind
    decode_rows: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 192
    data_batches: int = 400

    @property
    def settings(self) -> Recipe:
        """The recipe itself."""
        return RECIPES[self.recipe]()

    @property
    def tokens(self) -> int:
        """Tokens that a turn trains on, scores, generates or loads."""
        recipe = self.settings
        batch = recipe.batch_size * recipe.sequence_length
        per_turn = {"decode": self.decode_rows * self.new_tokens, "data": self.data_batches * batch}
        return per_turn.get(self.kind, batch)

    @property
    def flops(self) -> int | None:
        """Operations of a turn, as `llmjax.planning` counts them; None where matmuls do not rule.

        Decoding waits for memory, and the loader multiplies nothing.
        """
        recipe = self.settings
        if self.kind == "train":
            return self.tokens * planning.training_flops(recipe.model, recipe.sequence_length)
        if self.kind == "eval":
            return self.tokens * planning.forward_flops(recipe.model, recipe.sequence_length)
        return None

    @property
    def parameters(self) -> int | None:
        """The model's, so that a peer can be checked to have the same; None without a model."""
        return None if self.kind == "data" else specs.count(model_spec(self.settings.model))

    def job(self) -> dict[str, Any]:
        """All that a worker needs, as plain values: a peer's process does not import jax."""
        recipe = self.settings
        model = dataclasses.asdict(recipe.model) | {
            "num_kv_heads": recipe.model.kv_heads,
            "mlp_dim": recipe.model.hidden_dim,
        }
        return dataclasses.asdict(self) | {
            "model": model,
            "batch_size": recipe.batch_size,
            "sequence_length": recipe.sequence_length,
            "optimizer": dataclasses.asdict(recipe.optimizer),
        }


# W0 only shows that the benchmark works.
_RECIPES = {"W0": "tiny", "W1": "w1", "W2": "w2"}

WORKLOADS: Mapping[str, Workload] = types.MappingProxyType(
    {
        workload.name: workload
        for short, recipe in _RECIPES.items()
        for workload in (
            Workload(short, recipe, "train"),
            Workload(f"{short}-eval", recipe, "eval"),
            Workload(f"{short}-decode", recipe, "decode"),
        )
    }
    | {"data": Workload("data", "w1", "data")}
)
