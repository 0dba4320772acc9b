"""Versions and machine of a run, saved with it so that results can be reproduced."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

import llmjax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "sentencepiece",
)


def versions() -> dict[str, str | int]:
    """Versions of Python, packages and this checkout, and the machine's devices.

    Packages that are not installed are left out, as is the commit without git.
    """
    found: dict[str, str | int] = {
        "python": platform.python_version(),
        "llmjax": llmjax.__version__,
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit()
    if commit:
        found["commit"] = commit
    devices = jax.devices()
    found["system"] = platform.platform()
    found["cpu_count"] = os.cpu_count() or 1
    found["backend"] = jax.default_backend()
    found["device_kind"] = devices[0].device_kind
    found["device_count"] = len(devices)
    return found


def _commit() -> str:
    """The commit of this checkout, with a + if files were modified; empty without git."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    root = pathlib.Path(__file__).parent
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()
