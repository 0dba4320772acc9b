"""Each metric against a closed form, a count by hand or another implementation."""

import collections
import math
import random

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

pytest.importorskip("rensa")
pytest.importorskip("sklearn")
pytest.importorskip("spacy")
pytest.importorskip("spellchecker")

from llmjax.data import quality
from llmjax.data.cleaning import exact, minhash
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.quality import lists, variety
from llmjax.data.quality.language import casing_errors, punctuation_errors
from llmjax.data.quality.topics import Topics, vendi_score
from llmjax.data.quality.view import Is, view


def corpus(texts, source="s"):
    return [Document(text, f"{source}:{i}", source) for i, text in enumerate(texts)]


def vocabulary(count, seed=0):
    """Different words of letters that no list has."""
    rng = random.Random(seed)
    words = set()
    while len(words) < count:
        words.add("".join(rng.choices("bcdfghjklmnpqrstvwxz", k=7)))
    return sorted(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don’t stop at 3.14, e-mail x86!", ["don't", "stop", "at", "3.14", "e", "mail", "x86"]),
        ("naïve café über Straße", ["naïve", "café", "über", "straße"]),
        ("你好 world", ["你", "好", "world"]),
        ("snake_case … --", ["snake", "case"]),
        ("", []),
    ],
)
def test_words(text, words):
    seen = view(Document(text))
    expected = [quality.sketches.hash_text(word) for word in words]
    assert seen.words.tolist() == expected
    assert seen.count(Is.WORD) == len(words)


def test_hostile_texts_take_no_more_time_and_memory_than_others():
    """Each of an eighth of a megabyte; what takes the square of that would not end."""
    size = 1 << 17
    for piece in ("a", "1", ".", "!", ",", " ", "\n", "'", "a'", "1.", ", ", "(", "。", "字", "\0"):
        found = quality.measure([Document(piece * (size // len(piece)) + "x")])
        assert found.amount.bytes > size // 2
    assert len(view(Document("a" * 1000)).words) == 16


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("A sentence, well put; it ends. Or does it? (It does!)", 0),
        ("One , two.", 1),
        ("One,two;three.", 2),
        ("It ends.Next one begins .", 2),
        ("What??? No!! Wait....", 3),
        ("Twice,, and ;; so", 2),
        ('An (open bracket and a "quote', 2),
        ("1,000.5 at example.com, e.g. or i.e. this: ok", 0),
        ("Vraiment ? Oui !", 2),
    ],
)
def test_punctuation_errors(text, errors):
    assert punctuation_errors(text) == errors


def test_french_has_space_in_front_of_marks():
    assert punctuation_errors("Vraiment ? Oui ! Non , merci.", "fr") == 1


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("A sentence. Another one.\nand a wrapped line", 0),
        ("It ended. then it began. again!", 2),
        ("We met e.g. in the U.S. and so on, etc. as before", 0),
        ("BUY CHEAP PILLS now", 3),
        ("NASA and ESA met at CERN", 0),
        ("i think i'm right and I am", 2),
        ("hELLO iPhone MySQL", 1),
    ],
)
def test_casing_errors(text, errors):
    assert casing_errors(view(Document(text))) == errors


def test_planted_misspellings_are_counted():
    """Names are unknown but not misspelt; what is not in the list is both."""
    known = [word for word in sorted(lists.known_words("en")) if word.isalpha()]
    rng = random.Random(0)
    words = rng.sample([word for word in known if len(word) > 4], 970)
    words += vocabulary(20) + [word.capitalize() for word in vocabulary(10, seed=1)]
    rng.shuffle(words)
    found = quality.language_quality(corpus([" ".join(words[i::10]) for i in range(10)]))
    assert found.unknown_words == 30 / 1000
    assert found.misspelt_words == 20 / 990


def test_both_spellings_of_english_are_known():
    for word in ("colour", "organised", "analyse", "centre", "dialogue", "travelled", "dog's"):
        assert lists.is_known(word, "en"), word
    for word in ("teh", "recieve", "definately", "qwrtz"):
        assert not lists.is_known(word, "en"), word


def test_languages_without_lists_are_left_out():
    found = quality.language_quality([Document("moja rodina", metadata={"language": "sk"})])
    assert found.unknown_words is None
    assert found.punctuation_errors == 0


def by_length(texts):
    """Perplexity 4 of texts of two letters, 32 of longer ones, and none of the empty."""
    return [math.inf if not text else 4.0 if len(text) == 2 else 32.0 for text in texts]


def test_perplexity_is_the_geometric_mean_by_bytes():
    """Ten of 2 bytes at 2 bits and one of 40 at 5: 240 bits over 60 bytes."""
    config = quality.QualityConfig(scorer=by_length)
    texts = ["ab"] * 10 + ["x" * 40, ""]
    assert quality.language_quality(corpus(texts), config).perplexity == pytest.approx(2**4)
    many = quality.language_quality(corpus(texts * 20), config)
    assert many.perplexity == pytest.approx(2**4)
    assert quality.language_quality(corpus(["abc"])).perplexity is None


def test_compression_is_what_zstd_of_another_library_makes():
    texts = ["the same words again and again " * n for n in (1, 40, 400)] + ["x" * 100_000]
    compressed = [len(pa.Codec("zstd", compression_level=3).compress(t.encode())) for t in texts]
    found = quality.information_density(corpus(texts))
    expected = sum(map(len, texts)) / sum(compressed)
    assert found.compression == pytest.approx(expected, rel=0.01)


def test_noise_does_not_compress_and_bytes_of_it_are_as_many_bits():
    """Base64 has 6 bits in 8, which is all that entropy coding can take away."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = "".join(random.Random(0).choices(letters, k=200_000))
    found = quality.information_density(corpus([text]))
    assert found.compression == pytest.approx(8 / 6, rel=0.02)
    assert found.byte_entropy == pytest.approx(6, abs=0.01)


def test_entropy_of_known_distributions():
    found = quality.information_density(corpus(["bad cab", "dab abc", "cad dcb"]))
    assert found.word_entropy == pytest.approx(math.log2(6))
    counts = collections.Counter("bad cabdab abccad dcb").values()
    assert found.byte_entropy == pytest.approx(scipy.stats.entropy(list(counts), base=2))


def test_content_words_numbers_and_names():
    text = "The cat of Anna Smith sat on 3 mats in 2024.\nPeople know NASA is in Ohio."
    found = quality.information_density(corpus([text]))
    # the, of, on, in; is, in: six of fifteen words of letters are function words.
    assert found.content_words == pytest.approx(9 / 15)
    assert found.numbers == 2 / 17
    assert found.names == 3 / 17  # neither the starts of sentence and line, nor NASA


def test_copies_against_brute_force():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(vocabulary(300), k=20)) for _ in range(40)]
    texts = [*rng.choices(texts, k=90), texts[0].upper() + "\n"]
    found = quality.duplication(corpus(texts))
    different = len({exact.normalised(text) for text in texts})
    assert found.exact_copies == 1 - different / 91
    lines = [line.strip() for text in texts for line in text.splitlines()]
    assert found.repeated_lines == 1 - len(set(lines)) / len(lines)
    grams = [
        tuple(words[i : i + 13])
        for words in (text.lower().split() for text in texts)
        for i in range(len(words) - 12)
    ]
    assert found.repeated_ngrams == pytest.approx(1 - len(set(grams)) / len(grams))


def near_copies(count, copies, seed=0):
    """Texts of 120 words, and of some of them copies with a few words replaced."""
    rng = random.Random(seed)
    words = vocabulary(4000)
    texts = [rng.choices(words, k=120) for _ in range(count)]
    for original in texts[:copies]:
        copy = list(original)
        for place in rng.sample(range(120), 3):
            copy[place] = rng.choice(words)
        texts.append(copy)
    return [" ".join(text) for text in texts]


def test_near_copies_are_those_that_the_step_removes():
    documents = corpus(near_copies(150, 60))
    settings = minhash.MinHash()
    step = minhash.step([minhash.index(documents, settings)], settings)
    removed = sum(isinstance(step(document), Rejected) for document in documents)
    assert 40 <= removed <= 60
    found = quality.duplication(documents)
    assert found.near_copies == pytest.approx(removed / 210)


def test_a_sample_of_copies_keeps_them_together():
    """Half of the documents are copies, in every sample; near copies are, but for a few."""
    sizes = quality.DuplicationSizes(near=64)
    config = quality.QualityConfig(duplication=sizes)
    texts = near_copies(400, 0)
    assert quality.duplication(corpus(texts * 2), config).near_copies == 0.5
    near = quality.duplication(corpus(near_copies(400, 400)), config).near_copies
    assert 0.3 < near < 0.5


def test_all_new_words_grow_in_proportion_and_a_closed_vocabulary_not_at_all():
    words = iter(vocabulary(8000))
    new = corpus([" ".join(next(words) for _ in range(10)) for _ in range(800)])
    found = quality.diversity(new)
    assert found.heaps_exponent == pytest.approx(1, abs=0.01)
    assert found.heaps_factor == pytest.approx(1, rel=0.05)
    closed = corpus([" ".join(vocabulary(10)) for _ in range(800)])
    found = quality.diversity(closed)
    assert found.heaps_exponent == pytest.approx(0, abs=1e-9)
    assert found.heaps_factor == pytest.approx(10)


def test_growth_is_what_zipf_implies():
    """Of words drawn with probabilities p, N are of sum(1 - (1 - p)^N) kinds."""
    size = 50_000
    p = np.arange(1, size + 1) ** -1.6
    p /= p.sum()
    draws = np.random.default_rng(0).choice(size, size=(3000, 50), p=p)
    documents = corpus([" ".join(f"w{number}" for number in row) for row in draws])
    counts = variety.DiversityCounts()
    for document in documents:
        counts.add(view(document))
    growth = counts.growth
    expected = [float((1 - (1 - p) ** n).sum()) for n in growth.words]
    assert growth.words[-1] == 150_000
    np.testing.assert_allclose(growth.vocabulary, expected, rtol=0.06)
    slope = np.polyfit(np.log(growth.words), np.log(expected), 1)[0]
    assert counts.result(Topics()).heaps_exponent == pytest.approx(slope, abs=0.02)


def test_vendi_scores_of_known_kernels():
    assert vendi_score(np.ones((5, 3))) == pytest.approx(1)
    assert vendi_score(7 * np.eye(6)) == pytest.approx(6)
    groups = np.repeat(np.eye(3), [4, 4, 8], axis=0)
    assert vendi_score(groups) == pytest.approx(np.exp(scipy.stats.entropy([4, 4, 8])))


def speaking_of(topic, count, seed=0):
    words = vocabulary(30, seed=100 + topic)
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=40)) for _ in range(count)]


def test_planted_topics_are_found():
    config = quality.QualityConfig(topics=4)
    parts = [speaking_of(topic, 30) for topic in range(4)]
    everything = [text for part in parts for text in part]
    found = quality.diversity(corpus(everything), config)
    assert found.topics == pytest.approx(4)
    topics = Topics.fit(everything, count=4)
    assert {topic.share for topic in topics.found} == {0.25}
    assert topics.effective(parts[0] + parts[2]) == pytest.approx(2)
    planted = [set(vocabulary(30, seed=100 + topic)) for topic in range(4)]
    assert all(any(set(topic.words) <= words for words in planted) for topic in topics.found)


def lengths(texts):
    """Vectors of two directions: short and long texts."""
    return np.array([[1.0, 0.0] if len(text) < 50 else [0.0, 1.0] for text in texts])


def test_given_embeddings_make_the_topics():
    texts = ["short text"] * 30 + ["a long text of many words that goes on and on and on" * 2] * 10
    config = quality.QualityConfig(embed=lengths, topics=2)
    found = quality.diversity(corpus([f"{text} {i}" for i, text in enumerate(texts)]), config)
    assert found.topics == pytest.approx(np.exp(scipy.stats.entropy([3, 1])))
    assert found.spread == pytest.approx(np.exp(scipy.stats.entropy([3, 1])))


def test_sources_count_by_their_bytes():
    documents = [Document("x" * size, source=name) for name, size in (("a", 6), ("b", 3), ("a", 3))]
    expected = np.exp(scipy.stats.entropy([9, 3]))
    assert quality.diversity(documents).sources == pytest.approx(expected)


def test_nothing_has_no_quality():
    found = quality.measure([])
    assert found.amount == quality.Amount(0, 0, 0)
    for family in quality.FAMILIES:
        numbers = vars(getattr(found, family))
        assert set(numbers.values()) <= {None}
    silent = quality.measure([Document("", "a"), Document(" \n ?!", "b")])
    assert silent.amount.words == 0
    assert silent.density.word_entropy is None
