"""The implementations of an operation, by name."""

from collections.abc import Iterable

from llmjax import mesh

PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "gpu"}  # where kernels run


def check(operation: str, name: str | None, known: Iterable[str]) -> None:
    """Raises ValueError for a name that is neither None, the default, nor known."""
    if name is not None and name not in known:
        raise ValueError(
            f"{operation}: implementation={name!r} is none of {', '.join(known)}; None chooses"
        )


def interpreted(name: str) -> bool:
    """Whether a kernel is, since the platform is not its own."""
    return mesh.platform() != PLATFORMS[name]
