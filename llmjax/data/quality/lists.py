"""Word lists: the known words and the function words of languages."""

import functools
import importlib
import re

from llmjax.data.cleaning.extra import needs

# British spellings and their American equivalents, which the English list has.
_AMERICAN = (
    (re.compile(r"our"), "or"),
    (re.compile(r"is(e|ed|es|er|ers|ing|ation|ations|able)$"), r"iz\1"),
    (re.compile(r"ys(e|ed|es|er|ers|ing)$"), r"yz\1"),
    (re.compile(r"tre(s?)$"), r"ter\1"),
    (re.compile(r"ogue(s?)$"), r"og\1"),
    (re.compile(r"ll(ed|ing|er|ers)$"), r"l\1"),
    (re.compile(r"ence(s?)$"), r"ense\1"),
)


@functools.lru_cache
def known_words(language: str) -> frozenset[str]:
    """The words in pyspellchecker's list of a language, in lower case; empty if it has no list.

    It has lists of ar, de, en, es, eu, fa, fr, it, lv, nl, pt and ru, from OpenSubtitles with
    misspellings removed; English has American spelling.

    Raises:
        ImportError: the package is not installed.
    """
    with needs("pyspellchecker"):
        import spellchecker
    if language not in spellchecker.SpellChecker.languages():
        return frozenset()
    return frozenset(spellchecker.SpellChecker(language).word_frequency.dictionary)


@functools.lru_cache
def function_words(language: str) -> frozenset[str]:
    """Articles, pronouns, auxiliaries and so on: spaCy's stop words; empty if it has no list.

    Raises:
        ImportError: spaCy is not installed.
    """
    with needs("spacy"):
        importlib.import_module("spacy")
    try:
        words = importlib.import_module(f"spacy.lang.{language}.stop_words").STOP_WORDS
    except ModuleNotFoundError:
        return frozenset()
    return frozenset(words)


def is_known(word: str, language: str) -> bool:
    """Whether a language's list has a lower-case word, as it is, without 's, or Americanised."""
    known = known_words(language)
    if word in known or word.removesuffix("'s") in known:
        return True
    return language == "en" and any(
        pattern.sub(american, word, count=1) in known for pattern, american in _AMERICAN
    )
