"""The base model of a run: another run's model, or a Hugging Face checkpoint."""

import abc
import json
import pathlib
from typing import Any

from etils import epath

from experiments import runs
from experiments.flags import FlagError
from llmjax import data, hf, models
from llmjax.train import integrity


class Base(abc.ABC):
    """An existing model.

    Attributes:
        path: its folder.
        config: model configuration.
    """

    path: pathlib.Path
    config: models.ModelConfig

    @abc.abstractmethod
    def tokenizer_directory(self) -> pathlib.Path:
        """The folder of its tokenizer."""

    @abc.abstractmethod
    def load(self) -> tuple[Any, str]:
        """Its parameters as plain float32 arrays on the current mesh, and their fingerprint.

        Raises:
            FlagError: they cannot be read.
        """

    def tokenizer(self) -> data.Tokenizer:
        """The tokenizer that it was trained with.

        Raises:
            FlagError: it cannot be read.
        """
        try:
            return data.load_tokenizer(self.tokenizer_directory())
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise FlagError(f"--base={self.path}: {error}") from error


class RunBase(Base):
    """The best checkpoint of a run."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self._task = path, runs.saved_task(path)
        self.config = self._task.config

    def tokenizer_directory(self) -> pathlib.Path:
        """The folder of the run's data."""
        return self._task.directory()

    def load(self) -> tuple[Any, str]:
        """Merges adapters; the fingerprint is that of the manifest, which has all digests.

        Of a run with a generator, the model is the discriminator.
        """
        found = runs.load(self.path)
        try:
            _, params = next(iter(self._task.trained_models(found.params).values()))
        except FlagError as error:
            raise FlagError(f"--base={self.path}: {error}") from error
        return params, runs.fingerprint(self.path, found.step)


class HubBase(Base):
    """A folder that `transformers` or `experiments.export` wrote."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            self.config = hf.load_config(path)
        except ValueError as error:
            raise FlagError(f"--base={path}: {error}") from error

    def tokenizer_directory(self) -> pathlib.Path:
        """The folder itself."""
        return self.path

    def load(self) -> tuple[Any, str]:
        """Loads the checkpoint; the fingerprint is that of its tensor files."""
        try:
            _, params = hf.load(self.path, dtype="float32", progress=True)
        except ValueError as error:
            raise FlagError(f"--base={self.path}: {error}") from error
        return params, integrity.digest(epath.Path(self.path), "*.safetensors")


def find(path: str) -> Base:
    """The model in a folder.

    Raises:
        FlagError: there is none.
    """
    if not path:
        raise FlagError("--base is missing: name the folder of a run or a Hugging Face checkpoint")
    folder = pathlib.Path(path)
    config = folder / "config.json"
    if not config.is_file():
        raise FlagError(f"--base={path}: no model there (it has no config.json)")
    try:
        is_run = "recipe" in json.loads(config.read_text("utf-8"))
    except ValueError as error:
        raise FlagError(f"--base={path}: {config} is not JSON: {error}") from error
    return RunBase(folder) if is_run else HubBase(folder)
