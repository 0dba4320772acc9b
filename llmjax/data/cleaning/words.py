"""Texts cut into words and sentences as datatrove does it for each language, only faster.

Filters have their thresholds from papers that counted words with some tokenizer; datatrove's have
spaCy's for most languages. Its rules look at one stretch between white space at a time, and most
stretches come again and again: each is cut once and remembered.
"""

import functools
import itertools
import re
from typing import Any

from llmjax.data.cleaning.extra import needs

# How many stretches are remembered, and after how many new ones spaCy begins anew: it keeps every
# string that it has seen, some 500 bytes each.
_REMEMBERED = 1 << 17
_FORGOTTEN_AFTER = 1 << 16
# spaCy takes brackets and dots off a stretch one by one, looking at all of it each time: a minute
# for 10,000 brackets. A stretch that is longer and has more marks is no word; it is cut up before.
_LONGEST = 256
_MOST_MARKS = 64

# White space that is a token of its own for spaCy: all but a single space between two words.
_PIECES = re.compile(r"^\s+|\S+|\s{2,}|[^\S ]")
_SENTENCE_STARTS = re.compile("e[ep]*w")


def split(text: str, language: str) -> tuple[str, ...]:
    """The words and marks of a text, without the space between them.

    Args:
        text: any text.
        language: ISO 639-1 code; one without a tokenizer is cut as English is.

    Raises:
        ImportError: datatrove is not installed, or what it needs for the language.
    """
    return _tokenizer(language).words(text)


def count_sentences(text: str, language: str) -> int:
    """How many sentences a text has: at least one, and one more for each that begins after another.

    Args:
        text: any text.
        language: as for `split`.

    Raises:
        ImportError: as `split`.
    """
    return _tokenizer(language).sentences(text)


@functools.lru_cache
def punctuation() -> frozenset[str]:
    """The marks of all scripts that datatrove does not take for words, control characters too."""
    with needs("datatrove"):
        from datatrove.utils.text import PUNCTUATION_SET
    return frozenset(PUNCTUATION_SET)


@functools.lru_cache
def sentence_ends() -> frozenset[str]:
    """The marks of all scripts that end a sentence."""
    with needs("datatrove"):
        from datatrove.utils.text import TERMINAL_PUNCTUATION
    return frozenset(TERMINAL_PUNCTUATION)


@functools.lru_cache
def stop_words(language: str) -> frozenset[str] | None:
    """The frequent words of a language by its ISO 639-1 code, or None where spaCy knows none."""
    with needs("spacy"):
        from spacy.util import get_lang_class
    try:
        return frozenset(get_lang_class(language).Defaults.stop_words) or None
    except ImportError:
        return None


@functools.lru_cache
def _tokenizer(language: str) -> "_SpaCy | _Other":
    with needs("datatrove"):
        from datatrove.utils import word_tokenizers
    try:
        tokenizer = word_tokenizers.load_word_tokenizer(language)
    except ValueError:
        return _tokenizer("en")
    with needs(f"what datatrove cuts the language {language!r} with"):
        if type(tokenizer) is word_tokenizers.SpaCyTokenizer and _rules(tokenizer.language):
            return _SpaCy(tokenizer.language)
    return _Other(tokenizer)


def _rules(code: str) -> Any:
    """spaCy's rules of a language; None where it has something else."""
    import spacy

    tokenizer = spacy.blank(code).tokenizer
    return tokenizer if type(tokenizer) is spacy.tokenizer.Tokenizer else None


class _Other:
    """A tokenizer of datatrove's as it is: of languages without spaces, for the most part."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def words(self, text: str) -> tuple[str, ...]:
        return tuple(self._tokenizer.word_tokenize(text))

    def sentences(self, text: str) -> int:
        return max(1, len(self._tokenizer.span_tokenize(text)))


class _SpaCy:
    """spaCy's rules of a language, stretch by stretch."""

    def __init__(self, code: str) -> None:
        from spacy.pipeline import Sentencizer

        self._code = code
        self._rules = _rules(code)
        self._ends = frozenset(Sentencizer.default_punct_chars)
        self._cut_count = 0
        self._cut = functools.lru_cache(_REMEMBERED)(self._cut_anew)
        self._kinds = functools.lru_cache(_REMEMBERED)(self._kinds_anew)

    def words(self, text: str) -> tuple[str, ...]:
        return tuple(itertools.chain.from_iterable(map(self._cut, text.split())))

    def sentences(self, text: str) -> int:
        """By the rule of spaCy's sentencizer.

        A sentence begins at a word once a mark that ends one has come, and marks behind it.
        """
        pieces = text.split()
        if " ".join(pieces) != text:
            pieces = _PIECES.findall(text)
        return 1 + len(_SENTENCE_STARTS.findall("".join(map(self._kinds, pieces))))

    def _cut_anew(self, stretch: str) -> tuple[str, ...]:
        if len(stretch) > _LONGEST and sum(not c.isalnum() for c in stretch) > _MOST_MARKS:
            parts = (stretch[i : i + _LONGEST] for i in range(0, len(stretch), _LONGEST))
            return tuple(itertools.chain.from_iterable(map(self._cut_anew, parts)))
        stretch = stretch.encode("utf-8", "replace").decode()  # spaCy takes Unicode only
        return self._cut_simple(stretch) or self._cut_by_rules(stretch)

    def _cut_by_rules(self, stretch: str) -> tuple[str, ...]:
        self._cut_count += 1
        if self._cut_count % _FORGOTTEN_AFTER == 0:
            self._rules = _rules(self._code)
        return tuple(token.text for token in self._rules(stretch))

    def _cut_simple(self, stretch: str) -> tuple[str, ...] | None:
        """A word, or one with a mark behind it, as spaCy's rules cut it, at a quarter of the cost.

        Most stretches are that. None of all others, and where the rules have more to say.
        """
        rules, word = self._rules, stretch[:-1]
        if not (stretch.isalpha() or word.isalpha()) or stretch in rules.rules:
            return None
        if (rules.prefix_search and rules.prefix_search(stretch)) or not rules.suffix_search:
            return None
        suffix = rules.suffix_search(stretch)
        if suffix and suffix.start() == len(word) > 0 and not stretch.isalpha():
            return (*self._cut(word), stretch[-1])
        if suffix or (rules.infix_finditer and any(rules.infix_finditer(stretch))):
            return None
        return (stretch,) if stretch.isalpha() else None

    def _kinds_anew(self, piece: str) -> str:
        """Of each word: does it end sentences, is it another mark (p), or neither (w)?"""
        if piece.isspace():
            return "w"
        from spacy.lang.lex_attrs import is_punct

        words = self._cut(piece)
        return "".join("e" if w in self._ends else "p" if is_punct(w) else "w" for w in words)
