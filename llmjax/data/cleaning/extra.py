"""Libraries that cleaning, measuring and augmenting text need, of the extra `llmjax[data]`."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs(library: str) -> Iterator[None]:
    """Says, of an import within that fails, which extra brings the library in.

    Raises:
        ImportError: the library, or one that it needs, is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"this needs {library}, which cannot be imported ({error}): pip install 'llmjax[data]'",
            name=error.name,
        ) from error
