"""Small checkpoints, and what they are compared with."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmjax import hf, models


@pytest.fixture(scope="session")
def amend() -> Callable[[pathlib.Path, dict[str, Any]], None]:
    """Changes fields of a JSON file."""

    def change(path: pathlib.Path, fields: dict[str, Any]) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


@pytest.fixture
def checkpoint(tmp_path, llama, draw) -> pathlib.Path:
    """A directory with a tiny Llama."""
    hf.save(tmp_path / "llama", llama, draw(models.spec(llama)))
    return tmp_path / "llama"


@pytest.fixture(scope="session")
def tensors() -> dict[str, np.ndarray]:
    """One of every dtype, with a scalar, an empty one, and NaNs with a payload."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 16, (3, 5), np.uint16)
    return {
        "f64": random.standard_normal((2, 3)),
        "f32": random.integers(0, 1 << 32, (7, 3), np.uint32).view(np.float32),
        "f16": random.standard_normal(5).astype(np.float16),
        "bf16": bits.view(ml_dtypes.bfloat16),
        "i64": random.integers(-5, 5, (2, 1, 2)),
        "i32": np.arange(3, dtype=np.int32),
        "i16": np.arange(3, dtype=np.int16),
        "i8": np.arange(-3, 4, dtype=np.int8),
        "u8": np.arange(7, dtype=np.uint8),
        "bool": np.array([True, False, True]),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((4, 0, 2), np.float32),
    }
