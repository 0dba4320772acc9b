"""Freed host memory goes back to the operating system."""

import ctypes
import os
import pathlib
import types

import jax
import jax.numpy as jnp
import pytest

from llmjax.train import host_memory

glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)


def resident_mb() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@glibc
def test_a_long_compilation_ends_with_less_memory(request):
    request.addfinalizer(host_memory.trim_after_compiling())
    blocks = [bytes(2000) for _ in range(100_000)]
    kept = blocks[::100]  # without them glibc would give all of it back by itself
    del blocks
    before = resident_mb()
    jax.monitoring.record_event_duration_secs(host_memory.COMPILED, 0.5)
    assert resident_mb() > before - 20
    jax.monitoring.record_event_duration_secs(host_memory.COMPILED, 2.0)
    assert resident_mb() < before - 100
    assert len(kept) == 1000


@glibc
def test_it_ends(monkeypatch):
    trimmed = []
    library = types.SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    end = host_memory.trim_after_compiling()
    jax.monitoring.record_event_duration_secs(host_memory.COMPILED, 2.0)
    end()
    jax.monitoring.record_event_duration_secs(host_memory.COMPILED, 2.0)
    assert trimmed == [0]


def test_jax_still_tells_of_compilations_by_that_name(compilations):
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)).block_until_ready()
    assert set(compilations) == {host_memory.COMPILED}
