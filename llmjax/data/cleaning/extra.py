"""Optional libraries of the extra `llmjax[data]`, for cleaning, measuring and augmenting text."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs(library: str) -> Iterator[None]:
    """Names the extra to install if an import within the block fails.

    Raises:
        ImportError: the library, or one of its dependencies, is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"this needs {library}, which cannot be imported ({error}): pip install 'llmjax[data]'",
            name=error.name,
        ) from error
