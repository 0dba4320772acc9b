"""Texts cut into words, as datatrove does it for each language."""

import functools
from typing import Any

from llmjax.data.cleaning.extra import needs


def split(text: str, language: str) -> tuple[str, ...]:
    """The words and marks of a text, without the space between them.

    Args:
        text: any text.
        language: ISO 639-1 code; one without a tokenizer is cut as English is.

    Raises:
        ImportError: datatrove is not installed.
    """
    return tuple(_tokenizer(language).word_tokenize(text))


@functools.lru_cache
def _tokenizer(language: str) -> Any:
    with needs("datatrove"):
        from datatrove.utils import word_tokenizers
    try:
        return word_tokenizers.load_word_tokenizer(language)
    except ValueError:
        return word_tokenizers.load_word_tokenizer("en")
