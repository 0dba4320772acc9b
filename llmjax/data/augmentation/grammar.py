"""English grammar: parts of speech where they are unambiguous, and word forms.

The forms come from `lemminflect`, which is based on the NLM's SPECIALIST lexicon.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from llmjax.data.augmentation.lexicon import CLOSED, DEGREES, DETERMINERS, MODALS, SUBJECTS
from llmjax.data.augmentation.words import Word
from llmjax.data.cleaning.extra import needs

PARTS = ("NOUN", "VERB", "ADJ", "ADV")

# Penn Treebank tags of the forms of each part of speech.
_TAGS: Mapping[str, tuple[str, ...]] = {
    "NOUN": ("NN", "NNS"),
    "VERB": ("VB", "VBD", "VBG", "VBN", "VBP", "VBZ"),
    "ADJ": ("JJ", "JJR", "JJS"),
    "ADV": ("RB", "RBR", "RBS"),
}


@functools.lru_cache
def _library() -> Any:
    with needs("lemminflect"):
        import lemminflect
    return lemminflect


@functools.lru_cache(maxsize=1 << 16)
def lemmas(word: str) -> Mapping[str, tuple[str, ...]]:
    """The lemmas of a word by possible part of speech; empty if unknown."""
    found = _library().getAllLemmas(word.lower())
    return {part: found[part] for part in PARTS if part in found}


@functools.lru_cache(maxsize=1 << 16)
def forms(lemma: str, tag: str) -> tuple[str, ...]:
    """The forms of a lemma for a Penn Treebank tag; empty if the lexicon does not know them."""
    return tuple(_library().getInflection(lemma, tag=tag, inflect_oov=False))


def lemma_of(word: str, part: str) -> str:
    """The lemma of a word as a part of speech; "" if it cannot be that."""
    return next(iter(lemmas(word).get(part, ())), "")


def inflected_like(word: str, part: str, other: str) -> str:
    """Another lemma of a part of speech, in the form of a given word.

    If the word's form is ambiguous (`put` has five readings), the other must have the same form for
    all of them. "" if it does not, or if its form is unknown.
    """
    lemma, lower = lemma_of(word, part), word.lower()
    tags = [tag for tag in _TAGS[part] if lower in forms(lemma, tag)[:1]]
    found = [forms(other, tag)[:1] for tag in tags]
    return found[0][0] if found and found[0] and len(set(found)) == 1 else ""


def parts_of_speech(found: Sequence[Word]) -> list[str]:
    """The part of speech of each word of a text; "" where it is not certain.

    A word that the lexicon lists under one part only has that part. Otherwise the neighbours
    decide: after an article and at the end of a phrase it is a noun, after a subject or a modal a
    verb, after a word of degree not a noun. Closed-class words and names have none.
    neither.
    """
    parts = []
    for i, word in enumerate(found):
        before = found[i - 1] if i and not word.gap.strip() else None
        behind = found[i + 1] if i + 1 < len(found) and not found[i + 1].gap.strip() else None
        parts.append(_part(word, before, behind))
    return parts


def _part(word: Word, before: Word | None, behind: Word | None) -> str:
    lower = word.text.lower()
    named = word.text[:1].isupper() and not word.text.isupper() and not word.begins
    can_be = tuple(lemmas(lower))
    if lower in CLOSED or named or not can_be:
        return ""
    if len(can_be) == 1:
        return can_be[0]
    ahead = before.text.lower() if before else ""
    ends = behind is None or behind.text.lower() in CLOSED
    if ahead in DETERMINERS:
        if ends:
            return "NOUN" if "NOUN" in can_be and "ADJ" not in can_be else ""
        return "ADJ" if "ADJ" in can_be and "NOUN" not in can_be else ""
    if ahead in SUBJECTS or ahead in MODALS:
        return "VERB" if "VERB" in can_be else ""
    if ahead == "to" and behind is not None and behind.text.lower() in DETERMINERS:
        return "VERB" if "VERB" in can_be else ""
    if ahead in DEGREES and "ADJ" in can_be:
        return "ADJ" if ends and "ADV" not in can_be else ""
    return ""
