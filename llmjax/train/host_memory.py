"""Host memory that a compiler leaves behind."""

import ctypes
import functools
import sys

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


@functools.cache
def trim_after_compiling() -> None:
    """Gives freed host memory back to the operating system after every compilation of a second.

    XLA's compiler frees some hundred MB in small pieces, which glibc keeps: the temporaries of the
    first step would come on top of them. For entry points, once per process; where the C library
    is not glibc nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED and duration_secs > 1:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listen)
