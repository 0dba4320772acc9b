"""What stages have in common that start from a model which is there."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import jax

from experiments.flags import FlagError
from experiments.recipe import Training
from experiments.tasks import base
from experiments.tasks.task import Batch, Task, mixed
from llmjax import data, mesh, models, peft, train, tree
from llmjax import spec as specs
from llmjax.data import chat, demos
from llmjax.data.config import ExampleConfig, ExampleSource, Kind
from llmjax.models import Dropout
from llmjax.peft import MethodConfig, method

BASE_FILE = "base.json"
REFERENCE = "reference"  # a frozen copy of a policy, beside its own entries
_HEAD = "^head(/|$)"
# What no weight can hold, and what to do instead of merging it.
_UNMERGEABLE = {
    "prefix": "no weight can hold prefixes: write PEFT's files of them, with --adapter",
    "adapter": "no weight can hold bottleneck adapters, nor do PEFT's files: read the run itself",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(Training):
    """What all runs have that start from a model which is there.

    Attributes:
        base: the folder of a run, or of a Hugging Face checkpoint.
        data: the examples and their tokens.
        corpus: examples that come with Python packages, read when `data` has no sources:
            chatterbot, a thousand questions with answers; friendly_replies, comparisons of replies
            in conversations by their sentiment; openings, what was said before them.
        peft: what of the model is trained.
        dropout: shares dropped in training.
        remat: what the backward pass computes again (`model.remat`).
    """

    base: str = ""
    data: ExampleConfig = ExampleConfig()
    corpus: Literal["none", "chatterbot", "friendly_replies", "openings"] = "none"
    peft: MethodConfig = MethodConfig()
    dropout: Dropout = Dropout()
    remat: Literal["none", "dots", "full"] = "none"


class TuningTask(Task):
    """Of such a recipe.

    Attributes:
        kind: of the examples.
        base: the model that is there.
        model_spec: of its parameters and what is added to them.
        template: how it is spoken to.
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
        if recipe.sequence_length > self.config.max_length:
            raise FlagError(
                f"--sequence_length={recipe.sequence_length}: {recipe.base} was made for up to "
                f"{self.config.max_length} tokens"
            )

    def configure(self, config: models.ModelConfig) -> models.ModelConfig:
        """The base's configuration with the head of this stage: here that of next tokens.

        Raises:
            FlagError: the base has another.
        """
        if config.head.kind != "lm":
            raise FlagError(
                f"--base={self.recipe.base}: a model with a head of kind {config.head.kind} does "
                "not write; name one that predicts next tokens"
            )
        return config

    def directory(self) -> pathlib.Path:
        """Where the tokenizer and the examples lie."""
        return pathlib.Path(self.recipe.data.directory or self.run_dir / "data")

    def prepare(self) -> None:
        """Turns the examples into tokens."""
        settings = dataclasses.replace(self.recipe.data, kind=self.kind)
        corpus = self.recipe.corpus
        try:
            if corpus != "none" and not settings.sources:
                path = self.directory() / "corpus" / f"{corpus}.jsonl"
                demos.EXAMPLES[corpus](path)
                source = ExampleSource(corpus, str(path))
                settings = dataclasses.replace(settings, sources=(source,))
            data.prepare_examples(settings, self.directory(), self.base.tokenizer())
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise FlagError(str(error)) from error

    def tokenizer(self) -> data.Tokenizer:
        """The base's."""
        return data.load_tokenizer(self.directory())

    @functools.cached_property
    def template(self) -> chat.ChatTemplate:
        """How the model is spoken to."""
        return chat.load_template(self.recipe.data.template, self.tokenizer())

    def start(self, optimizer: Any) -> train.TrainState:
        """The base's parameters, and new ones by the recipe's seed."""
        params, fingerprint = self._loaded()
        self._remember(fingerprint)
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), 1)
        return train.start_state(key, params, optimizer, self.trained)

    def go_on(self, state: train.TrainState) -> train.TrainState:
        """With what is frozen from the base again."""
        if self.trained is None:
            return state
        return dataclasses.replace(state, frozen=self._frozen())

    def load(self, restore: Callable[[Any], Any]) -> tuple[Any, int] | None:
        """What was trained, within the base where the rest is frozen."""
        found = restore({"params": specs.abstract(self.trained_spec)})
        if found is None:
            return None
        params = found.state["params"]
        if self.trained is not None:
            params = tree.combine(params, self._frozen())
        return params, found.step

    def own(self, params: Any) -> Any:
        """Those of the model that is tuned, as `model_spec` declares them."""
        return params

    def merge(self, params: Any) -> Any:
        """Adapters in the weights."""
        return peft.merge(self.own(params))

    def trained_models(self, params: Any) -> dict[str, tuple[models.ModelConfig, Any]]:
        """With adapters in the weights, where these can hold them."""
        if self.recipe.peft.name in _UNMERGEABLE:
            raise FlagError(
                f"peft.name={self.recipe.peft.name}: {_UNMERGEABLE[self.recipe.peft.name]}"
            )
        return super().trained_models(params)

    def save_adapter(self, params: Any, directory: pathlib.Path, dtype: str) -> None:
        """What the method added, and the head if that is new."""
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
                raise ValueError("peft.name=prefix: its files have no place for a new head")
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
        return self.complete(adapted), fingerprint

    def complete(self, params: Any) -> Any:
        """With what the stage has beside the model."""
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
        """Raises FlagError where the base's parameters are others than they were."""
        path = self.run_dir / BASE_FILE
        if path.exists() and json.loads(path.read_text("utf-8"))["fingerprint"] != fingerprint:
            raise FlagError(
                f"--base={self.recipe.base}: its parameters have changed since {self.run_dir} began"
                ", which has only what it trained itself: restore them, or begin a new run"
            )
