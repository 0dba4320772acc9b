"""Repetition within a text: repeated lines or paragraphs, and repeated n-grams."""

import collections
from collections.abc import Iterator, Sequence


def repeats(parts: Sequence[str]) -> tuple[int, int]:
    """Number of repeated lines or paragraphs, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        else:
            seen.add(part)
    return count, characters


def ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of words, in order."""
    return zip(*(words[i:] for i in range(n)), strict=False)


def top_ngram_characters(words: Sequence[str], n: int) -> int:
    """The characters of the most frequent n-gram, including its spaces, times its count.

    Ties go to the first; 0 for a text of fewer than n words.
    """
    counts = collections.Counter(map(" ".join, ngrams(words, n)))
    if not counts:
        return 0
    ngram, count = counts.most_common(1)[0]
    return len(ngram) * count


def repeated_ngram_characters(words: Sequence[str], n: int) -> int:
    """The characters of repeated n-grams, counting no word twice."""
    count = len(words) - n + 1
    if len(set(map("".join, ngrams(words, n)))) >= count:
        return 0
    grams = list(map("".join, ngrams(words, n)))
    seen: set[str] = set()
    position = characters = 0
    while position < count:
        gram = grams[position]
        if gram in seen:
            characters += len(gram)
            position += n
        else:
            seen.add(gram)
            position += 1
    return characters
