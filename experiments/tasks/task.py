"""What a training run learns: parameters, loss, batches and evaluation, whatever the stage."""

import abc
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from experiments.flags import FlagError
from experiments.recipe import Training
from llmjax import data, mesh, models, train, tree
from llmjax import spec as specs
from llmjax.data import mixture
from llmjax.data.chat import ChatTemplate
from llmjax.objectives import Loss
from llmjax.train import metrics
from llmjax.train.checkpoint import Remembering
from llmjax.train.loop import Hook

if TYPE_CHECKING:
    import rich.table

Batch = Mapping[str, np.ndarray]
Record = Callable[[int, dict[str, float]], None]


class Report(Protocol):
    """What there is to say of a model beyond the metrics of its evaluation."""

    def metrics(self) -> dict[str, float]:
        """Its numbers, by their names."""

    def table(self, title: str = "") -> "rich.table.Table":
        """For the terminal."""


def mixed(
    directory: pathlib.Path,
    settings: data.MixtureConfig,
    tokens: float | None = None,
    *,
    examples: float | None = None,
) -> dict[str, float] | None:
    """The shares of prepared sources, as `mixture.weights`; None for those of their weights.

    Raises:
        FlagError: the sources cannot be mixed so.
    """
    if settings == data.MixtureConfig():
        return None
    try:
        return mixture.weights(data.load_manifest(directory), settings, tokens, examples=examples)
    except ValueError as error:
        raise FlagError(f"--data.mixture: {error}") from error


class Task(abc.ABC):
    """Of a recipe and the folder of its run; made before anything is computed.

    Attributes:
        recipe: the run.
        run_dir: its folder.
        config: of the model that is wanted.
        spec: of all parameters, frozen ones too.
        trained: picks by path the parameters that are trained; None: all are.
    """

    recipe: Training
    run_dir: pathlib.Path
    config: models.ModelConfig
    spec: Any
    trained: tree.Predicate | None = None

    @property
    def trained_spec(self) -> Any:
        """Of the parameters that are trained; None in place of the others."""
        return self.spec if self.trained is None else tree.partition(self.spec, self.trained)[0]

    @abc.abstractmethod
    def directory(self) -> pathlib.Path:
        """Where the prepared data lie."""

    @abc.abstractmethod
    def prepare(self) -> None:
        """Makes the data ready, or finds it done.

        Raises:
            FlagError: it cannot be used.
        """

    @abc.abstractmethod
    def tokenizer(self) -> data.Tokenizer:
        """Of the model."""

    @abc.abstractmethod
    def start(self, optimizer: Any) -> train.TrainState:
        """The state before the first step, on the current mesh."""

    def go_on(self, state: train.TrainState) -> train.TrainState:
        """A state that was restored, with what checkpoints leave out."""
        return state

    @abc.abstractmethod
    def make_loss(self, *, plain: bool = False) -> Loss:
        """What is minimised; `plain` leaves out what only regularises."""

    @functools.cached_property
    def plain_loss(self) -> Loss:
        """Of evaluations: always the same function, which is compiled once."""
        return self.make_loss(plain=True)

    @abc.abstractmethod
    def batches(
        self,
        split: data.SplitName,
        *,
        directory: pathlib.Path | None = None,
        batch_size: int | None = None,
    ) -> Iterable[Batch]:
        """This process's rows of the batches of a split.

        Args:
            split: which.
            directory: of prepared data; by default the run's.
            batch_size: by default the recipe's.
        """

    @abc.abstractmethod
    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics by name, validation_loss among them, of all parameters.

        Raises:
            ValueError: there is nothing to evaluate.
        """

    def merge(self, params: Any) -> Any:
        """All parameters as the model's own spec declares them, without adapters."""
        return params

    def trained_models(self, params: Any) -> dict[str, tuple[models.ModelConfig, Any]]:
        """The ordinary models in all parameters, by name; the first is the one that is wanted.

        Raises:
            FlagError: what was trained cannot be part of one.
        """
        return {"model": (self.config, self.merge(params))}

    def save_adapter(self, params: Any, directory: pathlib.Path, dtype: str) -> None:
        """Writes what was added to a model in PEFT's files, in a precision.

        Raises:
            FlagError: there is nothing, or nothing that such files can hold.
        """
        del params, directory, dtype
        raise FlagError("--adapter: a run of pretraining trains the model itself; leave it out")

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """How the model is spoken to; None: by text that it goes on with."""
        return None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of what a head tells apart; empty: they have none."""
        return ()

    def report(self, params: Any, batches: Iterable[Batch]) -> Report | None:
        """More about a model than `evaluate` says of the same batches; None: there is nothing.

        What the page of a run shows is kept in its folder.
        """
        del params, batches
        return None

    @abc.abstractmethod
    def load(self, restore: Callable[[Any], Any]) -> tuple[Any, int] | None:
        """All parameters of a checkpoint, on the current mesh, and its step; None: there is none.

        Args:
            restore: (a tree of the shapes that are wanted) to a `checkpoint.Restored`, or None.
        """

    def ready(self, batches: Any, state: train.TrainState, record: Record) -> None:
        """Before the first step of a run, or of its continuation."""
        del batches, state, record

    def hooks(self, batches: Any, record: Record) -> list[Hook]:
        """What else watches a run; `record` keeps metrics of a step."""
        return []

    def remembering(self) -> dict[str, Remembering]:
        """What else belongs to the run, by name."""
        return {}

    def ended(self) -> str:
        """Why a run is at its end before its last step; "": it is not."""
        return ""

    @property
    def sample_every(self) -> int | None:
        """Steps between samples, 0 meaning only at the end; None: there are none."""
        return None

    def sample(self, params: Any) -> tuple[str, str]:
        """A prompt and what the model goes on with."""
        raise NotImplementedError

    def throughput(self) -> metrics.Throughput:
        """How its speed is counted."""
        return metrics.Throughput(counted="inputs", chips=jax.device_count())

    def make_mesh(self, devices: list | None = None) -> jax.sharding.Mesh:
        """The recipe's mesh over `devices`, by default all.

        Raises:
            FlagError: it does not fit the devices, or the batch or the model does not divide.
        """
        try:
            made = mesh.make_mesh(self.recipe.mesh, devices)
            self.require_divides(made)
        except ValueError as error:
            raise FlagError(str(error)) from error
        return made

    def require_divides(self, made: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
        """Raises ValueError where the batch or the model does not divide over a mesh."""
        recipe = self.recipe
        abstract = made if isinstance(made, jax.sharding.AbstractMesh) else made.abstract_mesh
        with jax.sharding.use_abstract_mesh(abstract):
            devices = mesh.size("batch")
            if recipe.batch_size % (devices * recipe.accumulate):
                raise ValueError(
                    f"batch_size={recipe.batch_size} does not divide over {devices} devices (mesh "
                    f"{' × '.join(mesh.RULES['batch'])}) in accumulate={recipe.accumulate} parts"
                )
            rows = recipe.batch_size // recipe.accumulate
            models.require_fits(self.config, rows, recipe.sequence_length)
        for param in jax.tree.leaves(self.spec, is_leaf=specs.is_param):
            _require_divides(param, made)


def _require_divides(
    param: specs.Param, made: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> None:
    for size, axis in zip(param.shape, param.axes, strict=True):
        names = mesh.RULES[axis] if axis else ()
        for name in names:
            if size % made.shape[name]:
                raise ValueError(
                    f"mesh.{name}={made.shape[name]} does not divide the model's {size} "
                    f"({axis}): choose sizes that divide"
                )
