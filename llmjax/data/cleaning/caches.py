"""Caches of what is computed per word, of bounded size in bytes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Longer words (encoded pictures, text without spaces) hardly recur, and would fill a cache.
LONGEST = 256


def each(function: Any, words: Sequence[str]) -> Iterator[Any]:
    """Maps words by a function with `functools.lru_cache`, whose cache keeps no long words."""
    if max(map(len, words), default=0) <= LONGEST:
        return map(function, words)
    anew: Callable[[str], Any] = function.__wrapped__
    return (function(word) if len(word) <= LONGEST else anew(word) for word in words)
