#!/usr/bin/env python3
r"""Measures how often a word's part of speech is determined, and how often a tagger agrees.

    apt-get install apertium apertium-eng-spa
    tools/judge_parts_of_speech.py --archive=vaderSentiment-3.3.2.tar.gz

`grammar.parts_of_speech` gives no answer if it cannot be sure; synonyms are only used for the other
words. The tagger is Apertium's for English, a hidden Markov model, on a thousand film reviews
(VADER's). It makes errors too: if the two differ, either may be right.
"""

import argparse
import collections
import difflib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from llmjax.data import corpora
from llmjax.data.augmentation import grammar, words

TEXTS = 1000
PARTS: Mapping[str, str] = {
    "n": "NOUN",
    "vblex": "VERB",
    "adj": "ADJ",
    "adv": "ADV",
    "preadv": "ADV",
}

Tagged = list[tuple[str, str]]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", required=True, help="vaderSentiment's source distribution")
    parser.add_argument(
        "--data", default="/usr/share/apertium/apertium-eng-spa", help="the pair's folder"
    )
    options = parser.parse_args()
    texts = read(options.archive)
    print(table(compare(told(texts), tagged(texts, pathlib.Path(options.data)))))


def read(archive: str) -> list[str]:
    """Film reviews, without characters that are special in the tagger's format."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "texts.jsonl"
        corpora.sentiment(path, archive)
        records = map(json.loads, path.read_text("utf-8").splitlines())
        found = [r["text"] for r in records if r["domain"] == "movieReviewSnippets"]
    return [re.sub(r"[\[\]{}^$@/\\<>*]", " ", text) for text in found if text.isascii()][:TEXTS]


def told(texts: Sequence[str]) -> Tagged:
    """Words with their part of speech by our rules."""
    found: Tagged = []
    for text in texts:
        of_text = words.words(text)
        parts = grammar.parts_of_speech(of_text)
        found += [(word.text, part) for word, part in zip(of_text, parts, strict=True)]
    return found


def tagged(texts: Sequence[str], folder: pathlib.Path) -> Tagged:
    """Words with their part of speech by Apertium's tagger; "" for those of closed classes."""
    data = "\n".join(texts)
    for command in (
        ["apertium-destxt"],
        ["lt-proc", str(folder / "eng-spa.automorf.bin")],
        ["apertium-tagger", "-g", "-p", str(folder / "eng-spa.prob")],
    ):
        data = subprocess.run(
            command, input=data, text=True, capture_output=True, check=True
        ).stdout
    found: Tagged = []
    for word, reading in re.findall(r"\^([^/$]+)/([^$]+)\$", data):
        tag = re.search(r"<(\w+)>", reading)
        found.append((word, PARTS.get(tag[1], "") if tag else ""))
    return found


def compare(ours: Tagged, theirs: Tagged) -> collections.Counter[str]:
    """Counts of commonly tokenized words: content words, determined ones, and agreements."""
    matcher = difflib.SequenceMatcher(
        None, [word for word, _ in ours], [word for word, _ in theirs], autojunk=False
    )
    counts: collections.Counter[str] = collections.Counter()
    for block in matcher.get_matching_blocks():
        for i in range(block.size):
            (word, part), (_, other) = ours[block.a + i], theirs[block.b + i]
            kind = "one part only" if len(grammar.lemmas(word)) == 1 else "several"
            if other:
                counts[f"{kind}: content"] += 1
            if other and part:
                counts[f"{kind}: told"] += 1
                counts[f"{kind}: alike"] += part == other
    return counts


def table(counts: collections.Counter[str]) -> str:
    """The table, by whether the lexicon has a single part of speech for a word."""
    lines = ["| the lexicon knows | words | told | tagger agrees |", "| --- | ---: | ---: | ---: |"]
    for kind in ("one part only", "several"):
        content, told_, alike = (counts[f"{kind}: {n}"] for n in ("content", "told", "alike"))
        lines.append(f"| {kind} | {content:,} | {told_ / content:.1%} | {alike / told_:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
