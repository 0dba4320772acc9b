"""Splits texts into words and sentences like datatrove for each language, but faster.

The thresholds of filters come from papers that counted words with some tokenizer; datatrove uses
spaCy's for most languages. Its rules look at one chunk between white space at a time, and most
chunks recur: each is split once and cached.
"""

import functools
import itertools
import re
from typing import Any

from llmjax.data.cleaning.caches import LONGEST, each
from llmjax.data.cleaning.extra import needs

# Number of cached chunks, and of new ones after which spaCy's rules are reloaded: spaCy keeps every
# string that it has seen, about 500 bytes each.
_REMEMBERED = 1 << 17
_FORGOTTEN_AFTER = 1 << 16
# spaCy strips brackets and dots from a chunk one by one, scanning all of it each time: a minute for
# 10,000 brackets. A longer chunk with more marks is not a word; it is cut into pieces first.
_MOST_MARKS = 64

# White space that is a token for spaCy: all but a single space between two words.
_PIECES = re.compile(r"^\s+|\S+|\s{2,}|[^\S ]")
_SENTENCE_STARTS = re.compile("e[ep]*w")


def split(text: str, language: str) -> tuple[str, ...]:
    """The words and marks of a text, without the white space between them.

    Args:
        text: any text.
        language: ISO 639-1 code; one without a tokenizer is treated like English.

    Raises:
        ImportError: datatrove, or what it needs for the language, is not installed.
    """
    return _tokenizer(language).words(text)


def count_sentences(text: str, language: str) -> int:
    """The number of sentences in a text, at least one.

    Args:
        text: any text.
        language: as for `split`.

    Raises:
        ImportError: as for `split`.
    """
    return _tokenizer(language).sentences(text)


@functools.lru_cache
def punctuation() -> frozenset[str]:
    """The marks of all scripts that datatrove does not count as words, and control characters."""
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
    """The stop words of a language by its ISO 639-1 code; None if spaCy has none."""
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
    """spaCy's rule-based tokenizer of a language; None if it uses something else."""
    import spacy

    tokenizer = spacy.blank(code).tokenizer
    return tokenizer if type(tokenizer) is spacy.tokenizer.Tokenizer else None


class _Other:
    """A tokenizer of datatrove's, unchanged; mostly for languages without spaces."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def words(self, text: str) -> tuple[str, ...]:
        return tuple(self._tokenizer.word_tokenize(text))

    def sentences(self, text: str) -> int:
        return max(1, len(self._tokenizer.span_tokenize(text)))


class _SpaCy:
    """spaCy's rules of a language, applied to one chunk at a time."""

    def __init__(self, code: str) -> None:
        from spacy.pipeline import Sentencizer

        self._code = code
        self._rules = _rules(code)
        self._ends = frozenset(Sentencizer.default_punct_chars)
        self._cut_count = 0
        self._cut = functools.lru_cache(_REMEMBERED)(self._cut_anew)
        self._kinds = functools.lru_cache(_REMEMBERED)(self._kinds_anew)

    def words(self, text: str) -> tuple[str, ...]:
        return tuple(itertools.chain.from_iterable(each(self._cut, text.split())))

    def sentences(self, text: str) -> int:
        """Counts by the rule of spaCy's sentencizer.

        A sentence begins at the first word after a final mark and any further marks.
        """
        pieces = text.split()
        if " ".join(pieces) != text:
            pieces = _PIECES.findall(text)
        return 1 + len(_SENTENCE_STARTS.findall("".join(each(self._kinds, pieces))))

    def _cut_anew(self, stretch: str) -> tuple[str, ...]:
        if len(stretch) > LONGEST and sum(not c.isalnum() for c in stretch) > _MOST_MARKS:
            parts = (stretch[i : i + LONGEST] for i in range(0, len(stretch), LONGEST))
            return tuple(itertools.chain.from_iterable(map(self._cut_anew, parts)))
        stretch = stretch.encode("utf-8", "replace").decode()  # spaCy takes only valid Unicode
        return self._cut_simple(stretch) or self._cut_by_rules(stretch)

    def _cut_by_rules(self, stretch: str) -> tuple[str, ...]:
        self._cut_count += 1 + len(stretch) // LONGEST
        if self._cut_count >= _FORGOTTEN_AFTER:
            self._rules, self._cut_count = _rules(self._code), 0
        return tuple(token.text for token in self._rules(stretch))

    def _cut_simple(self, stretch: str) -> tuple[str, ...] | None:
        """Splits a word, or a word and a final mark, like spaCy's rules at a quarter of the cost.

        Most chunks are of this form. None for all others, and if further rules apply.
        """
        rules, word = self._rules, stretch[:-1]
        if not (stretch.isalpha() or word.isalpha()):
            return None
        if stretch in rules.rules or word in rules.rules:
            return None
        if (rules.prefix_search and rules.prefix_search(stretch)) or not rules.suffix_search:
            return None
        suffix = rules.suffix_search(stretch)
        if suffix and suffix.start() == len(word) > 0 and not stretch.isalpha():
            return (*next(each(self._cut, (word,))), stretch[-1])
        if suffix or (rules.infix_finditer and any(rules.infix_finditer(stretch))):
            return None
        return (stretch,) if stretch.isalpha() else None

    def _kinds_anew(self, piece: str) -> str:
        """Kind of each word: it ends sentences (e), is another mark (p), or neither (w)."""
        if piece.isspace():
            return "w"
        from spacy.lang.lex_attrs import is_punct

        words = next(each(self._cut, (piece,)))
        return "".join("e" if w in self._ends else "p" if is_punct(w) else "w" for w in words)
