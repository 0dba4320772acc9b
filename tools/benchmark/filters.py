"""Our heuristic steps paired with datatrove's filters for the same rules."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from llmjax.data import cleaning
from llmjax.data.cleaning import Document, Rejected

# From datatrove's reasons, where its filters give them, to ours.
_REASONS = {
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short on average",
    "gopher_above_avg_threshold": "words too long on average",
    "gopher_too_many_hashes": "too many hash signs",
    "gopher_too_many_ellipsis": "too many ellipses",
    "gopher_too_many_bullets": "too many bullet lines",
    "gopher_too_many_end_ellipsis": "too many lines ending in an ellipsis",
    "gopher_below_alpha_threshold": "too few words with letters",
    "gopher_enough_stop_words": "too few stop words",
    "empty": "empty text",
    "dup_para_frac": "too many repeated paragraphs",
    "dup_para_char_frac": "too much text in repeated paragraphs",
    "dup_line_frac": "too many repeated lines",
    "dup_line_char_frac": "too much text in repeated lines",
    **{f"top_{n}_gram": f"too much text in one {n}-gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"too much text in repeated {n}-grams" for n in range(5, 11)},
    "lorem_ipsum": "placeholder text",
    "curly_bracket": "curly bracket",
    "too_few_sentences": "too few sentences",
    "line_punct_ratio": "too few lines ending in punctuation",
    "short_line_ratio": "too many short lines",
    "char_dup_ratio": "too much text in repeated lines",
    "list_ratio": "too many line breaks",
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One of our steps and the equivalent datatrove filter.

    Attributes:
        step: the step.
        make_filter: builds the filter for a language.
    """

    step: Callable[[Document], Document | Rejected]
    make_filter: Callable[[str], Any]


def pairs() -> Mapping[str, Pair]:
    """The pairs by our names, with the papers' settings and with looser ones that let rules act.

    Most package descriptions are shorter than the 50 words that Gopher requires.

    Raises:
        ImportError: datatrove is not installed.
    """
    from datatrove.pipeline import filters

    return {
        "gopher_repetition": Pair(
            cleaning.GopherRepetition(),
            lambda language: filters.GopherRepetitionFilter(language=language),
        ),
        "gopher_quality": Pair(
            cleaning.GopherQuality(stop_words=cleaning.STOP_WORDS),
            lambda language: filters.GopherQualityFilter(language=language),
        ),
        "gopher_quality, loose": Pair(
            cleaning.GopherQuality(min_words=1, max_words=1000, stop_words=cleaning.STOP_WORDS),
            lambda language: filters.GopherQualityFilter(
                min_doc_words=1, max_doc_words=1000, language=language
            ),
        ),
        "c4_quality": Pair(
            cleaning.C4Quality(), lambda language: filters.C4QualityFilter(language=language)
        ),
        "c4_quality, FineWeb's": Pair(
            cleaning.C4Quality(terminal_marks=False),
            lambda language: filters.C4QualityFilter(
                filter_no_terminal_punct=False, language=language
            ),
        ),
        "c4_quality, loose": Pair(
            cleaning.C4Quality(min_sentences=2, min_line_words=0),
            lambda language: filters.C4QualityFilter(
                min_num_sentences=2, min_words_per_line=0, language=language
            ),
        ),
        "fineweb_quality": Pair(
            cleaning.FineWebQuality(),
            lambda language: filters.FineWebQualityFilter(language=language),
        ),
        "fineweb_quality, paper's": Pair(
            cleaning.FineWebQuality(max_repeated_characters=0.1),
            lambda language: filters.FineWebQualityFilter(
                char_duplicates_ratio=0.1, language=language
            ),
        ),
    }


def ours(pair: Pair, text: str, language: str = "en") -> tuple[str, str]:
    """Our step's reason for rejecting a text, or "", and the remaining text."""
    result = pair.step(Document(text, metadata={"language": language}))
    if isinstance(result, Rejected):
        return result.reason, text
    return "", result.text


def theirs(filter_: Any, text: str) -> tuple[str, str]:
    """Like `ours` for datatrove's filter, with the reason in our words."""
    from datatrove.data import Document as Theirs

    document = Theirs(text=text, id="")
    result = filter_.filter(document)
    if result is True:
        return "", document.text
    return _REASONS[result[1]], text
