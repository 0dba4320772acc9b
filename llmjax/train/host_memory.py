"""Releasing host memory after compilation."""

import ctypes
import sys
from collections.abc import Callable

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


def trim_after_compiling() -> Callable[[], None]:
    """Returns freed host memory to the operating system after compilations of over a second.

    XLA's compiler frees some hundred MB in small pieces, which glibc keeps, so that the temporaries
    of the first step would come on top. Without glibc this does nothing.

    Returns:
        A function that stops it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return lambda: None

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED and duration_secs > 1:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: jax.monitoring.unregister_event_duration_listener(listen)
