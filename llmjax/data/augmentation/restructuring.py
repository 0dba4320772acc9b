"""Restructures sentences by rules."""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

from llmjax.data.augmentation import grammar, lexicon, sentences
from llmjax.data.augmentation.method import Method
from llmjax.data.augmentation.words import Word, words

_CLAUSE = rf"(?P<clause>(?:{'|'.join(lexicon.SUBORDINATORS)})\s[^,;:()]+)"
_FRONTED = re.compile(rf"{_CLAUSE},\s+(?P<main>[^,;:()]+)", re.IGNORECASE)
_TRAILING = re.compile(rf"(?P<main>[^,;:()]+?),?\s+{_CLAUSE}")
_LINK = re.compile(rf"\b(?:{'|'.join(lexicon.LINKS)})\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not?|never|none|hardly)\b|n['’]t\b", re.IGNORECASE)
_PAIR = re.compile(r"\b(?P<one>[a-z]+)(?P<and>\s+(?:and|or)\s+)(?P<two>[a-z]+)\b")
_PASSIVE = re.compile(
    r"(?P<patient>[A-Za-z' -]+?)\s+(?:was|were)\s+(?P<verb>[a-z]+)\s+by\s+"
    r"(?P<agent>him|her|them|us|me|[A-Z][a-z]+(?: [A-Z][a-z]+)?)"
)
_BODY = re.compile(r"(?P<body>[^?\"“”]*?)(?P<stop>[.!]?)", re.DOTALL)


def _clauses(body: str) -> str:
    """Moves a subordinate clause from before its main clause to after it, or back."""
    if match := _FRONTED.fullmatch(body):
        clause, main = match["clause"], match["main"]
        made = f"{_capital(main)} {clause[:1].lower()}{clause[1:]}"
    elif match := _TRAILING.fullmatch(body):
        clause, main = match["clause"], _small(match["main"])
        if _holds(main, clause):
            return ""
        made = f"{_capital(clause)}, {main}"
    else:
        return ""
    return made if _plain(main) and _plain(clause.partition(" ")[2], 2) else ""


def _plain(clause: str, least: int = 3) -> bool:
    """Whether a clause is a statement of at least `least` words without another clause in it."""
    found = clause.lower().split()
    asks = found[:1] and found[0] in lexicon.QUESTIONS
    # A negation may apply to what follows: "not because".
    denies = _NEGATION.search(clause)
    return len(found) >= least and not asks and not denies and not _LINK.search(clause)


def _holds(main: str, clause: str) -> bool:
    """Whether a main clause depends on what follows: "even though", "I wonder if"."""
    last = main.rpartition(" ")[2].lower()
    if last in lexicon.CLOSED - lexicon.OBJECTS or "ADV" in grammar.lemmas(last):
        return True
    return clause.startswith(("if ", "when ")) and "VERB" in grammar.lemmas(last)


def _pairs(body: str) -> str:
    """Swaps the first two adjectives or nouns that are joined by "and" or "or"."""
    found = words(body)
    numbers = {word.start: i for i, word in enumerate(found)}
    for match in _PAIR.finditer(body):
        first, second = numbers.get(match.start("one")), numbers.get(match.start("two"))
        if first and second and _alone(found, first, second):
            swapped = match["two"] + match["and"] + match["one"]
            return body[: match.start()] + swapped + body[match.end() :]
    return ""


def _alone(found: Sequence[Word], first: int, second: int) -> bool:
    """Whether two words of one part of speech have closed-class words or marks around them.

    Otherwise a neighbour may belong to one of the pair: "movie stars and fans".
    """
    pair = [found[i].text for i in (first, second)]
    kinds = {tuple(grammar.lemmas(word)) for word in pair}
    before = found[first - 1].text.lower()
    if lexicon.CLOSED & set(pair) or found[first].gap.strip():
        return False
    if before not in lexicon.CLOSED - {"a", "an", "and", "or", "between", "both", "either"}:
        return False
    last = second + 1 == len(found) or found[second + 1].gap.strip()
    ends = last or found[second + 1].text.lower() in lexicon.CLOSED - {"of", "and", "or"}
    if before in lexicon.COPULAS and ends and all("ADJ" in grammar.lemmas(w) for w in pair):
        return True
    return kinds == {("ADJ",)} or (kinds == {("NOUN",)} and bool(ends))


def _active(body: str) -> str:
    """Turns a past passive with a personal agent into the active voice."""
    match = _PASSIVE.fullmatch(body)
    if match is None:
        return ""
    verb, agent, patient = match["verb"], match["agent"], match["patient"]
    lemma = grammar.lemma_of(verb, "VERB")
    past = grammar.forms(lemma, "VBD")
    if lemma not in lexicon.AGENTIVE or verb not in grammar.forms(lemma, "VBN") or not past:
        return ""
    if agent.split()[0].lower() in lexicon.TIMES:
        return ""
    alone = lexicon.OBJECT_OF.get(patient.lower(), "")
    if not alone and any(word.lower() in lexicon.CLOSED for word in patient.split()[1:]):
        return ""
    target = alone or _small(patient)
    return target and f"{_capital(lexicon.SUBJECT_OF.get(agent, agent))} {past[0]} {target}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _small(text: str) -> str:
    """The text with a lower-case first letter; "" if that may be wrong."""
    first = re.split(r"[\s'’]", text, maxsplit=1)[0]
    if first == "I" or not text[:1].isupper():
        return text
    names = text[len(first) + 1 : len(first) + 2].isupper()  # "The Rock" may keep its "The"
    return text[:1].lower() + text[1:] if first.lower() in lexicon.SMALL and not names else ""


RULES: Mapping[str, Callable[[str], str]] = {
    "clauses": _clauses,
    "pairs": _pairs,
    "active": _active,
}


@dataclasses.dataclass(frozen=True)
class Restructuring(Method):
    """Restructures sentences by rules that preserve meaning; otherwise nothing changes.

    The rules apply to few sentences (see `BENCH.md`), because each requires what makes it sound: no
    second clause, no quotation, no question, and words whose part of speech is certain.

    Attributes:
        rate: share of the sentences with an applicable rule that are changed, each by one rule.
        rules: rules to use. `clauses`: "Because it rained, we left." becomes "We left because it
            rained.", and vice versa. `pairs`: "it was slow and dull" becomes "it was dull and
            slow", for two simple adjectives or nouns. `active`: "It was written by Jane Austen."
            becomes "Jane Austen wrote it.", in the past tense with a person as agent.
    """

    rate: float = 1.0
    rules: tuple[str, ...] = tuple(RULES)
    name: ClassVar[str] = "restructuring"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules or not set(self.rules) <= set(RULES):
            raise ValueError(f"Restructuring.rules is {self.rules}: use some of {', '.join(RULES)}")

    def __call__(self, text: str, rng: random.Random) -> str:
        """The text with some sentences restructured; the rest, including space, is unchanged."""
        fitting = [
            (start, end, made)
            for start, end in sentences.spans(text)
            if (made := list(self._rebuilt(text[start:end])))
        ]
        pieces, at = [], 0
        for start, end, made in self.drawn(fitting, rng):
            pieces += [text[at:start], rng.choice(made)]
            at = end
        return "".join([*pieces, text[at:]])

    def _rebuilt(self, sentence: str) -> Iterator[str]:
        """The result of each rule that applies to a sentence."""
        match = _BODY.fullmatch(sentence)
        if match is None:
            return
        for rule in self.rules:
            if made := RULES[rule](match["body"]):
                yield made + match["stop"]
