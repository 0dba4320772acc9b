"""Base classes of stages that start from an existing model."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from experiments.flags import FlagError
from experiments.recipe import Training
from experiments.tasks import base
from experiments.tasks.task import Batch, Task, mixed
from llmjax import data, mesh, models, peft, train, tree
from llmjax import spec as specs
from llmjax.data import chat, demos
from llmjax.data.config import SHORTEST, ExampleConfig, ExampleSource, Kind
from llmjax.models import Dropout
from llmjax.peft import MethodConfig, method

BASE_FILE = "base.json"
REFERENCE = "reference"  # entry with the frozen copy of a model
_HEAD = "^head(/|$)"
# Methods whose parameters cannot be merged, and what to do instead.
_UNMERGEABLE = {
    "prefix": "prefixes cannot be merged into weights: write them in PEFT's format, with --adapter",
    "adapter": "bottleneck adapters cannot be merged into weights, nor written in PEFT's format: "
    "read the run itself",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(Training):
    """Settings shared by runs that start from an existing model.

    Attributes:
        base: the folder of a run, or of a Hugging Face checkpoint.
        data: the examples and their tokens.
        corpus: examples from Python packages, used if `data` has no sources: chatterbot, a thousand
            questions with answers; friendly_replies, comparisons of replies in conversations by
            their sentiment; openings, the turns before these replies.
        peft: the fine-tuning method.
        dropout: dropout rates.
        remat: what the backward pass recomputes (`model.remat`).
    """

    # The tokenizer, the kind of the examples, and the length to which they are cut.
    prepared_from: ClassVar[frozenset[str]] = Training.prepared_from | {
        "base",
        "objective",
        "preference",
        "responses",
        "rollouts",
        "sequence_length",
    }

    base: str = ""
    data: ExampleConfig = ExampleConfig()
    corpus: Literal["none", "chatterbot", "friendly_replies", "openings"] = "none"
    peft: MethodConfig = MethodConfig()
    dropout: Dropout = Dropout()
    remat: Literal["none", "dots", "full"] = "none"


class TuningTask(Task):
    """The task of a recipe that starts from an existing model.

    If it needs a reference, that is the model without its adapter or, with full fine-tuning, a
    frozen copy beside it.

    Attributes:
        kind: kind of the examples.
        base: the existing model.
        model_spec: spec of its parameters and of those added to them.
        template: the chat template.
    """

    kind: ClassVar[Kind]
    recipe: Tuning

    def __init__(self, recipe: Tuning, run_dir: pathlib.Path) -> None:
        self.recipe, self.run_dir = recipe, run_dir
        self.base = base.find(recipe.base)
        try:
            self.config = self.configure(
                dataclasses.replace(self.base.config, dropout=recipe.dropout, remat=recipe.remat)
            )
            self.model_spec = method.spec(models.spec(self.config), self.config, recipe.peft)
            self.spec = self.model_spec
            also = "" if self._keeps_head() else _HEAD
            self.trained = method.trains(self.spec, recipe.peft, also=also)
        except ValueError as error:
            raise FlagError(str(error)) from error
        if self._has_copy:
            self.spec = self.spec | {REFERENCE: models.spec(self.config)}
            own = self.trained
            self.trained = lambda path, leaf: (
                not path.startswith(f"{REFERENCE}/") and (own is None or own(path, leaf))
            )
        longest = models.longest_row(self.model_spec, self.config) or self.config.max_length
        if recipe.sequence_length > longest:
            raise FlagError(
                f"--sequence_length={recipe.sequence_length}: {recipe.base} supports only up to "
                f"{longest} tokens"
            )

    def configure(self, config: models.ModelConfig) -> models.ModelConfig:
        """The base's configuration with the head of this stage: here a language model.

        Raises:
            FlagError: the base has another head.
        """
        if config.head.kind != "lm":
            raise FlagError(
                f"--base={self.recipe.base}: a model with head.kind={config.head.kind} cannot "
                "generate text; name one that predicts next tokens"
            )
        return config

    @property
    def needs_reference(self) -> bool:
        """Whether anything depends on the model as it was before the first step."""
        return False

    @property
    def _has_copy(self) -> bool:
        return self.needs_reference and self.recipe.peft.name == "full"

    def directory(self) -> pathlib.Path:
        """The folder of tokenizer and examples."""
        return pathlib.Path(self.recipe.data.directory or self.run_dir / "data")

    @property
    def room(self) -> int:
        """The part of a row that each sequence of an example may fill, in tokens."""
        return self.recipe.sequence_length

    def prepare(self) -> None:
        """Tokenizes the examples, cut to what a row holds, and prints how many are cut."""
        if self.room < SHORTEST:
            raise FlagError(
                f"--sequence_length={self.recipe.sequence_length}: beside the other answers or new "
                f"tokens of a row, it leaves {max(self.room, 0)} tokens for each sequence of an "
                f"example, which needs {SHORTEST} or more: raise it"
            )
        corpus, max_length = self.recipe.corpus, min(self.recipe.data.max_length, self.room)
        try:
            settings = dataclasses.replace(self.recipe.data, kind=self.kind, max_length=max_length)
            if corpus != "none" and not settings.sources:
                path = self.directory() / "corpus" / f"{corpus}.jsonl"
                demos.EXAMPLES[corpus](path)
                source = ExampleSource(corpus, str(path))
                settings = dataclasses.replace(settings, sources=(source,))
            made = data.prepare_examples(settings, self.directory(), self.base.tokenizer())
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise FlagError(str(error)) from error
        if made.examples is not None and made.examples.cut and jax.process_index() == 0:
            count = sum(made.split(name).documents for name in data.SPLITS)
            print(
                f"{self.run_dir}: {made.examples.cut} of {count} examples are cut to {max_length} "
                "tokens, the lesser of data.max_length and what a row of sequence_length holds"
            )

    def tokenizer(self) -> data.Tokenizer:
        """The base's tokenizer."""
        return data.load_tokenizer(self.directory())

    @functools.cached_property
    def template(self) -> chat.ChatTemplate:
        """The chat template."""
        return chat.load_template(self.recipe.data.template, self.tokenizer())

    def start(self, optimizer: Any) -> train.TrainState:
        """The state with the base's parameters, and new ones from the recipe's seed."""
        params, fingerprint = self._loaded()
        self._remember(fingerprint)
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), 1)
        return train.start_state(key, params, optimizer, self.trained)

    def go_on(self, state: train.TrainState) -> train.TrainState:
        """Adds the frozen parameters, loaded from the base."""
        if self.trained is None:
            return state
        return dataclasses.replace(state, frozen=self._frozen())

    def load(self, restore: Callable[[Any], Any]) -> tuple[Any, int] | None:
        """Loads the trained parameters, and frozen ones from the base."""
        found = restore({"params": specs.abstract(self.trained_spec)})
        if found is None:
            return None
        params = found.state["params"]
        if self.trained is not None:
            params = tree.combine(params, self._frozen())
        return params, found.step

    def own(self, params: Any) -> Any:
        """The parameters of the tuned model, as declared by `model_spec`."""
        return {name: node for name, node in params.items() if name != REFERENCE}

    def reference(self, params: Any) -> Any:
        """The parameters of the reference."""
        if self._has_copy:
            return params[REFERENCE]
        return peft.without(self.own(params), self.model_spec)

    def merge(self, params: Any) -> Any:
        """Merges adapters into the weights."""
        return peft.merge(self.own(params))

    def trained_models(self, params: Any) -> dict[str, tuple[models.ModelConfig, Any]]:
        """The models with adapters merged, if possible."""
        if self.recipe.peft.name in _UNMERGEABLE:
            raise FlagError(
                f"peft.name={self.recipe.peft.name}: {_UNMERGEABLE[self.recipe.peft.name]}"
            )
        return super().trained_models(params)

    def save_adapter(self, params: Any, directory: pathlib.Path, dtype: str) -> None:
        """Writes the parameters that the method added, and the head if it is new."""
        name = self.recipe.peft.name
        if name == "full":
            raise FlagError(
                "--adapter: the run trained the model itself (peft.name=full); leave it out"
            )
        base_model = str(self.base.path.resolve()) if isinstance(self.base, base.HubBase) else ""
        task = "CAUSAL_LM" if self.config.head.kind == "lm" else "SEQ_CLS"
        also = "" if self._keeps_head() else _HEAD
        trained = method.trains(self.model_spec, self.recipe.peft, also=also)
        assert trained is not None
        added = tree.partition(self.own(params), trained)[0]
        added = jax.tree.map(lambda array: array.astype(dtype), added)
        try:
            if name != "prefix":
                where: dict[str, Any] = {"base_model": base_model, "task": task}
                whole = tree.matches(also) if also else None
                peft.files.save(directory, self.model_spec, added, whole=whole, **where)
            elif also:
                raise ValueError("peft.name=prefix: PEFT's format cannot hold a new head with it")
            else:
                peft.prefix_files.save(directory, added, self.config, base_model=base_model)
        except ValueError as error:
            raise FlagError(f"--adapter: {error}") from error

    def batches(
        self,
        split: data.SplitName,
        *,
        directory: pathlib.Path | None = None,
        batch_size: int | None = None,
    ) -> Iterable[Batch]:
        """Rows of examples."""
        index, count = mesh.row_share()
        directory = directory or self.directory()
        return data.example_batches(
            directory,
            self.kind,
            split=split,
            weights=self._weights(directory) if split == "train" else None,
            batch_size=batch_size or self.recipe.batch_size,
            sequence_length=self.recipe.sequence_length,
            seed=self.recipe.seed,
            process_index=index,
            process_count=count,
            **self.row_options(),
        )

    def _weights(self, directory: pathlib.Path) -> dict[str, float] | None:
        recipe = self.recipe
        rows = recipe.steps * recipe.batch_size
        if self.kind == "sft" and self.row_options().get("packing") != "none":
            # Padding counts as tokens, so that no source is read more often than it may.
            return mixed(directory, recipe.data.mixture, rows * recipe.sequence_length)
        return mixed(directory, recipe.data.mixture, examples=rows)

    def row_options(self) -> dict[str, Any]:
        """More arguments of `data.example_batches`."""
        return {}

    def _loaded(self) -> tuple[Any, str]:
        """All parameters before the first step, and the base's fingerprint."""
        params, fingerprint = self.base.load()
        if not self._keeps_head():
            params = {name: node for name, node in params.items() if name != "head"}
        key = jax.random.key(self.recipe.seed)
        plain = models.spec(self.config)
        adapted = method.adapt(params, plain, self.model_spec, self.recipe.peft, key)
        copy = {REFERENCE: jax.tree.map(jnp.copy, adapted)} if self._has_copy else {}
        return self.complete(adapted) | copy, fingerprint

    def complete(self, params: Any) -> Any:
        """Adds the stage's parameters outside of the model, other than the reference's."""
        return params

    def _keeps_head(self) -> bool:
        return self.config.head == self.base.config.head

    def _frozen(self) -> Any:
        params, fingerprint = self._loaded()
        self._require_same(fingerprint)
        assert self.trained is not None
        return tree.partition(params, self.trained)[1]

    def _remember(self, fingerprint: str) -> None:
        if jax.process_index() == 0:
            content = {"base": str(self.base.path.resolve()), "fingerprint": fingerprint}
            (self.run_dir / BASE_FILE).write_text(json.dumps(content, indent=1), "utf-8")

    def _require_same(self, fingerprint: str) -> None:
        """Raises FlagError if the base's parameters have changed."""
        path = self.run_dir / BASE_FILE
        if path.exists() and json.loads(path.read_text("utf-8"))["fingerprint"] != fingerprint:
            raise FlagError(
                f"--base={self.recipe.base}: its parameters have changed since {self.run_dir} began"
                ", which only has its trained parameters: restore them, or start a new run"
            )
