"""What all tests share: eight CPU devices, compiled programs kept between runs, small models."""

import gc
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all the time of such small tests is compilation. XLA's older emitters of fusions, which
# jax 0.12 no longer has, take 0.6 of the newer ones' time; workers use all cores as it is.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)

import jax
import numpy as np
import pytest

from llmjax import models, tree
from llmjax.spec import Param, is_param

ROOT = pathlib.Path(__file__).parents[1]

# Both before anything touches a device. xdist's workers share the folder: an entry that another
# one is just writing does not decompress, and is compiled again.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# This more than halves what is left; nobody reads the tracebacks in compiled programs.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_include_full_tracebacks_in_locations", False)
# Tracing makes millions of objects, nearly none of them garbage in a cycle: collecting as often as
# by default takes a tenth of a test's time.
gc.set_threshold(200_000, 20, 100)


@pytest.fixture
def optimizing_compiler() -> Iterator[None]:
    """For tests that look into compiled programs: compiled as users' are."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one entry with every program that is compiled, or read from the cache."""
    seen: list[str] = []

    def listen(event: str, seconds: float, **details: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def assert_bitwise() -> Callable[[Any, Any], None]:
    """Same structure, dtypes, and bits."""

    def one(actual: Any, expected: Any) -> None:
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.tobytes() == expected.tobytes()

    return lambda actual, expected: jax.tree.map(one, actual, expected)


@pytest.fixture(scope="session")
def gpt2() -> models.ModelConfig:
    """A GPT-2 whose every axis divides over up to 4 devices, and its width over 8; no dropout."""
    return models.gpt2(
        vocab_size=64,
        num_layers=2,
        embed_dim=16,
        num_heads=4,
        max_length=16,
        dropout=models.Dropout(),
    )


@pytest.fixture(scope="session")
def llama() -> models.ModelConfig:
    """Its sibling with grouped heads: 4 for queries, 2 for keys and values."""
    return models.llama(
        vocab_size=64, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, mlp_dim=32
    )


@pytest.fixture(scope="session")
def draw() -> Callable[[Any], Any]:
    """Parameters for a spec, by numpy: no compilation, and no bias is 0 or scale 1."""

    def one(path: str, param: Param) -> np.ndarray:
        random = np.random.RandomState(tree.path_hash(path))
        mean = 1.0 if path.endswith("norm/scale") else 0.0
        return (mean + 0.3 * random.randn(*param.shape)).astype(np.float32)

    return lambda spec: tree.map_with_path(one, spec, is_leaf=is_param)


@pytest.fixture(scope="session")
def packed() -> dict[str, np.ndarray]:
    """A batch [8, 16]: rows of one to three documents and padding, targets in very unequal number.

    The last row has no target at all: it is padding from end to end.
    """
    return _pack(np.random.RandomState(0), rows=8, length=16, vocab_size=64)


def _pack(
    random: np.random.RandomState, *, rows: int, length: int, vocab_size: int
) -> dict[str, np.ndarray]:
    """Random documents, packed as `llmjax.data` packs them; later rows hold less."""
    shape = (rows, length)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "segment_ids", "positions")}
    batch["targets"] = np.full(shape, -1, np.int32)
    for row in range(rows):
        start, stop = 0, length - row * length // (rows - 1)
        for segment in (1, 2, 3):
            size = min(stop - start, length if segment == 3 else random.randint(1, length // 2))
            if not size:
                break
            place = (row, slice(start, start + size))
            document = random.randint(1, vocab_size, size)
            batch["tokens"][place] = document
            batch["segment_ids"][place] = segment
            batch["positions"][place] = np.arange(size)
            batch["targets"][row, start : start + size - 1] = document[1:]
            start += size
    return batch
