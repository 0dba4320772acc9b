"""The interface of a task: parameters, loss, batches and evaluation of any training stage."""

import abc
import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from experiments.flags import FlagError
from experiments.recipe import Training
from llmjax import data, mesh, models, sampling, train, tree
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
    """A report on a model beyond the metrics of its evaluation."""

    def metrics(self) -> dict[str, float]:
        """Its numbers by name."""

    def table(self, title: str = "") -> "rich.table.Table":
        """A table for the terminal."""


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
    """The task of a recipe in a run folder; created before anything is computed.

    Attributes:
        recipe: the run.
        run_dir: its folder.
        config: configuration of the main model.
        spec: the spec of all parameters, including frozen ones.
        trained: selects the trained parameters by path; None for all.
        keeps: whether evaluations write files for the run's page to its folder.
    """

    recipe: Training
    run_dir: pathlib.Path
    config: models.ModelConfig
    spec: Any
    trained: tree.Predicate | None = None
    keeps: bool = True

    @property
    def trained_spec(self) -> Any:
        """The spec of the trained parameters, with None in place of the others."""
        return self.spec if self.trained is None else tree.partition(self.spec, self.trained)[0]

    @property
    def frozen_spec(self) -> Any:
        """The spec of the frozen parameters, with None in place of the others; None for none."""
        return None if self.trained is None else tree.partition(self.spec, self.trained)[1]

    @abc.abstractmethod
    def directory(self) -> pathlib.Path:
        """The folder of the prepared data."""

    @abc.abstractmethod
    def prepare(self) -> None:
        """Prepares the data, unless it is done.

        Raises:
            FlagError: the data cannot be used.
        """

    @abc.abstractmethod
    def tokenizer(self) -> data.Tokenizer:
        """The model's tokenizer."""

    @abc.abstractmethod
    def start(self, optimizer: Any) -> train.TrainState:
        """The state before the first step, on the current mesh."""

    def go_on(self, state: train.TrainState) -> train.TrainState:
        """Completes a restored state with what checkpoints leave out."""
        return state

    @abc.abstractmethod
    def make_loss(self, *, plain: bool = False) -> Loss:
        """The loss; `plain` leaves out regularization terms."""

    @functools.cached_property
    def plain_loss(self) -> Loss:
        """The loss of evaluations: always the same function, so that it is compiled once."""
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
            split: the split.
            directory: folder of prepared data; by default the run's.
            batch_size: by default the recipe's.
        """

    @abc.abstractmethod
    def evaluate(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics by name, including validation_loss, for all parameters.

        Raises:
            ValueError: there is nothing to evaluate.
        """

    def merge(self, params: Any) -> Any:
        """All parameters as declared by the plain model's spec, with adapters merged."""
        return params

    def trained_models(self, params: Any) -> dict[str, tuple[models.ModelConfig, Any]]:
        """The ordinary models among all parameters, by name; the first is the main one.

        Raises:
            FlagError: trained parameters cannot be merged into one.
        """
        return {"model": (self.config, self.merge(params))}

    def save_adapter(self, params: Any, directory: pathlib.Path, dtype: str) -> None:
        """Writes the adapter in PEFT's format and the given precision.

        Raises:
            FlagError: there is no adapter, or the format cannot hold it.
        """
        del params, directory, dtype
        raise FlagError("--adapter: a run of pretraining trains the model itself; leave it out")

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template; None for models that continue plain text."""
        return None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of labels; empty without labels."""
        return ()

    def report(self, params: Any, batches: Iterable[Batch]) -> Report | None:
        """A report on the same batches, after `evaluate`, or None.

        Files for the page of a run are written to its folder, if it `keeps` them.
        """
        del params, batches
        return None

    @abc.abstractmethod
    def load(self, restore: Callable[[Any], Any]) -> tuple[Any, int] | None:
        """All parameters of a checkpoint, on the current mesh, and its step; None without one.

        Args:
            restore: from a tree of wanted shapes to a `checkpoint.Restored` or None.
        """

    def ready(self, batches: Any, state: train.TrainState, record: Record) -> None:
        """Called before the first step of a new or resumed run."""
        del batches, state, record

    def hooks(self, batches: Any, record: Record) -> list[Hook]:
        """Further hooks of a run; `record` writes metrics of a step."""
        return []

    def remembering(self) -> dict[str, Remembering]:
        """Further hooks whose state is saved with the run, by name."""
        return {}

    def ended(self) -> str:
        """Why a run has ended before its last step; "" if it has not."""
        return ""

    @property
    def sample_every(self) -> int | None:
        """Steps between samples, 0 meaning only at the end; None for no samples."""
        return None

    def sample(self, params: Any) -> tuple[str, str]:
        """A prompt and the model's continuation."""
        raise NotImplementedError

    def continued(
        self,
        params: Any,
        prompt: Sequence[int],
        count: int,
        stops: Sequence[int | Sequence[int]],
    ) -> str:
        """The text with which a model continues a prompt, always from the same key.

        Args:
            params: all parameters, of a model that predicts next tokens.
            prompt: its tokens; if they leave no room, only the last ones are used.
            count: maximum number of new tokens.
            stops: tokens, or sequences of tokens, that end the text.
        """
        longest = models.longest_row(params, self.config) or self.config.max_length
        count = min(count, longest - 1)
        with jax.set_mesh(mesh.for_decoding(jax.sharding.get_mesh())):
            written = sampling.generate(
                specs.move(params, self.spec),
                [prompt[count - longest :]],
                self.config,
                jax.random.key(self.recipe.seed),
                max_new_tokens=count,
                sampler=sampling.SamplerConfig(temperature=0.8, top_p=0.95),
                stop_tokens=stops,
            )
        tokens = written.tokens[0, : written.lengths[0]].tolist()
        return sampling.text_of(tokens, self.tokenizer())

    def throughput(self) -> metrics.Throughput:
        """How the speed is measured."""
        return metrics.Throughput(counted="inputs", chips=jax.device_count())

    def make_mesh(self, devices: list | None = None) -> jax.sharding.Mesh:
        """The recipe's mesh over `devices`, by default all.

        Raises:
            FlagError: it does not fit the devices, or the batch or the model does not divide.
        """
        try:
            return self._mesh(self.recipe.mesh, devices)
        except ValueError as error:
            raise FlagError(str(error)) from error

    def make_mesh_to_serve(self) -> jax.sharding.Mesh:
        """The recipe's mesh or, where it does not fit the devices, another one.

        A model may be used where it was not trained, on fewer devices or on more: if it divides
        over all of them, they split the parameters, else the rows; else one of them does all.
        """
        split, rows = mesh.MeshConfig(data=1, fsdp=-1), mesh.MeshConfig()
        for config in (self.recipe.mesh, split, rows):
            with contextlib.suppress(ValueError):
                return self._mesh(config)
        return self._mesh(rows, jax.devices()[:1])

    def _mesh(self, config: mesh.MeshConfig, devices: list | None = None) -> jax.sharding.Mesh:
        made = mesh.make_mesh(config, devices)
        self.require_divides(made)
        return made

    def require_divides(self, made: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
        """Raises ValueError if the batch or the model does not divide over a mesh."""
        recipe = self.recipe
        abstract = made if isinstance(made, jax.sharding.AbstractMesh) else made.abstract_mesh
        with jax.sharding.use_abstract_mesh(abstract):
            recipe.require_rows_divide(mesh.size("batch"))
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
