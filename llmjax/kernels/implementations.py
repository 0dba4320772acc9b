"""Checks for the names of an operation's implementations."""

from collections.abc import Iterable

from llmjax import mesh

PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "gpu"}  # where kernels run


def check(operation: str, name: str | None, known: Iterable[str]) -> None:
    """Raises ValueError unless a name is known or None, the default."""
    if name is not None and name not in known:
        raise ValueError(
            f"{operation}: implementation={name!r} is none of {', '.join(known)}; None chooses one "
            "automatically"
        )


def interpreted(name: str) -> bool:
    """Whether a kernel is interpreted, because the platform is not the one it is written for."""
    return mesh.platform() != PLATFORMS[name]
