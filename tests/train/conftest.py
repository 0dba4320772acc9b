"""Checkpoints to restore and to break."""

import pathlib
import shutil

import pytest

from tests.train.states import save_all


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Checkpoints of steps 10 and 20; copy before you break them."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save_all(directory, 10, 20)
    return directory


@pytest.fixture
def directory(saved, tmp_path) -> pathlib.Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")
