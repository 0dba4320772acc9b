"""Duplicates are what sets say they are, however documents are dealt to shards."""

import itertools
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from llmjax.data.cleaning import Document, Rejected, exact, minhash, shingles
from llmjax.data.cleaning import index as indexing

rensa = pytest.importorskip("rensa")

# All different without numbers, which MinHash takes for the same.
WORDS = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=4)]


def deal(documents: list[Document], draw: random.Random, count: int) -> list[list[Document]]:
    """Documents in shards at random, the shards in any order."""
    shards: list[list[Document]] = [[] for _ in range(count)]
    for document in draw.sample(documents, len(documents)):
        draw.choice(shards).append(document)
    return shards


def survivors(documents: list[Document], step) -> list[str]:
    return [document.id for document in documents if not isinstance(step(document), Rejected)]


def family(seed: int, size: int = 300) -> list[Document]:
    """Documents, many of them near copies of others."""
    draw = random.Random(seed)
    texts = [draw.choices(WORDS, k=draw.randrange(1, 60)) for _ in range(size // 3)]
    copies = [
        [draw.choice(WORDS) if draw.random() < 0.02 else word for word in draw.choice(texts)]
        for _ in range(size - len(texts))
    ]
    return [
        Document(" ".join(words), id=f"f{i % 3}.txt:{i}", source=f"s{i % 2}")
        for i, words in enumerate(texts + copies)
    ]


def in_order(documents: list[Document]) -> list[Document]:
    """By source, file and position, which `id` writes out."""
    return sorted(documents, key=lambda d: (d.source, d.id[:2], int(d.id.split(":")[1])))


def test_exact_duplicates_are_those_of_a_set() -> None:
    texts = ["A b", "a  B", "c", "a\tb\n", "C", "Straße", "STRASSE", "e\u0301", "é", ""]
    documents = [Document(text, id=f"f:{i}") for i, text in enumerate(texts, start=1)]
    step = exact.step([exact.index(documents)])
    assert survivors(documents, step) == ["f:1", "f:3", "f:6", "f:8", "f:10"]
    rejected = step(documents[3])
    assert isinstance(rejected, Rejected)
    assert rejected.document.metadata["duplicate_of"] == "f:1"


@hypothesis.given(
    texts=strategies.lists(strategies.sampled_from("abcde")), seed=strategies.integers()
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_the_first_in_order_survives_however_documents_are_dealt(texts, seed) -> None:
    draw = random.Random(seed)
    documents = [
        Document(text, id=f"f{draw.randrange(3)}:{i}", source=draw.choice("xy"))
        for i, text in enumerate(texts)
    ]
    documents = in_order(documents)
    first = {document.text: document.id for document in reversed(documents)}
    step = exact.step([exact.index(shard) for shard in deal(documents, draw, 4)])
    assert survivors(documents, step) == [d.id for d in documents if first[d.text] == d.id]


@pytest.mark.parametrize("similarity", [None, 0.7])
def test_near_duplicates_do_not_depend_on_shards(similarity: float | None) -> None:
    settings = minhash.MinHash(similarity=similarity)
    documents = family(1)

    def kept(shards: list[list[Document]]) -> list[str]:
        indices = [minhash.index(shard, settings) for shard in shards]
        sets: dict[int, np.ndarray] = {}
        if similarity is not None:
            pairs = minhash.candidates(indices, settings)
            for shard in shards:
                sets |= minhash.candidate_sets(shard, pairs, settings)
        return survivors(documents, minhash.step(indices, settings, sets))

    whole = kept([documents])
    assert len(whole) < len(documents)
    for seed in range(3):
        assert kept(deal(documents, random.Random(seed), seed + 2)) == whole


def test_verified_clusters_are_those_of_exact_jaccard() -> None:
    """With bands enough to miss nothing, the pairs are the pairs of sets, by brute force."""
    settings = minhash.MinHash(n=3, bands=64, rows=2, similarity=0.5, window=1000)
    documents = in_order(family(2, size=150))
    sets = [grams(document.text.split(), 3) for document in documents]
    truth = {
        (documents[i].id, documents[j].id)
        for i, j in itertools.combinations(range(len(sets)), 2)
        if len(sets[i] & sets[j]) >= 0.5 * len(sets[i] | sets[j])
    }
    index = minhash.index(documents, settings)
    pairs = minhash.candidates([index], settings)
    pairs = minhash.verified(pairs, minhash.candidate_sets(documents, pairs, settings), 0.5)
    ids = (map(pairs.files.id, ends.tolist()) for ends in (pairs.left, pairs.right))
    assert set(zip(*ids, strict=True)) == truth
    assert truth


def grams(words: list[str], n: int) -> set[tuple[str, ...]]:
    n = min(n, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
def test_candidates_follow_the_closed_form(similarity: float) -> None:
    """1 - (1 - s^r)^b, within four standard deviations (rensa's spread is at most binomial)."""
    settings, trials, size = minhash.MinHash(), 1000, 60
    draw = np.random.default_rng(0)
    shared = round(2 * size * similarity / (1 + similarity))
    exactly = shared / (2 * size - shared)
    items = draw.integers(0, 2**63, (trials, 2 * size - shared), np.uint64)
    sets = [part for row in items for part in (row[:size], row[size - shared :])]
    bands = minhash.signatures(sets, settings).reshape(trials, 2, settings.bands, settings.rows)
    hits = (bands[:, 0] == bands[:, 1]).all(-1).any(-1).mean()
    expected = settings.probability(exactly)
    assert abs(hits - expected) < 4 * (expected * (1 - expected) / trials) ** 0.5


def test_probabilities_are_the_published_ones() -> None:
    """Of FineWeb (Penedo et al. 2024, section 3.4)."""
    published = {0.7: 0.56, 0.75: 0.77, 0.8: 0.92, 0.85: 0.988}
    for similarity, probability in published.items():
        assert minhash.MinHash().probability(similarity) == pytest.approx(probability, abs=0.006)


def test_as_many_pairs_as_datasketch() -> None:
    datasketch = pytest.importorskip("datasketch")
    settings = minhash.MinHash(window=1000)
    documents = family(3, size=400)
    pairs = minhash.candidates([minhash.index(documents, settings)], settings)
    sets = [np.unique(minhash.ngrams(document.text, settings)) for document in documents]
    lsh, theirs = datasketch.MinHashLSH(num_perm=112, params=(14, 8)), set()
    for i, elements in enumerate(sets):
        signature = datasketch.MinHash(num_perm=112)
        signature.update_batch([element.tobytes() for element in elements])
        theirs |= {(j, i) for j in lsh.query(signature)}
        lsh.insert(i, signature)
    chances = [
        settings.probability(minhash.jaccard(sets[i], sets[j]))
        for i, j in itertools.combinations(range(len(sets)), 2)
    ]
    spread = sum(chance * (1 - chance) for chance in chances) ** 0.5
    # Two draws of the same distribution; pairs within a family are not independent.
    assert abs(len(pairs.left) - len(theirs)) < 8 * spread
    assert abs(len(pairs.left) - sum(chances)) < 8 * spread


def test_short_documents_are_compared_whole() -> None:
    documents = [
        Document(text, id=f"f:{i}") for i, text in enumerate(["One, two!", "one two", "one"])
    ]
    documents += [Document(text, id=f"g:{i}") for i, text in enumerate(["", "...", "\n"])]
    settings = minhash.MinHash()
    step = minhash.step([minhash.index(documents, settings)], settings)
    assert survivors(documents, step) == ["f:0", "f:2", "g:0", "g:1", "g:2"]


@pytest.mark.parametrize("unit", ["word", "character"])
def test_ngrams_are_those_of_a_set(unit: str) -> None:
    settings = minhash.MinHash(n=3, unit=unit)
    for document in family(5, size=30):
        items = document.text.split() if unit == "word" else document.text
        n = min(3, len(items))
        expected = {tuple(items[i : i + n]) for i in range(len(items) - n + 1)}
        assert len(set(minhash.ngrams(document.text, settings).tolist())) == len(expected)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(("naïve Café", "NAIVE cafe"), ("e\u0301tude", "étude"), ("ﬁne １２", "fine 12")),
        *(("con\u00adtam\u200bi\u2060nate", "contaminate"), ("𝐁𝐨𝐥𝐝 ℌ", "bold h")),
        *(("كَتَبَ", "كتب"), ("שָׁלוֹם", "שלום"), ("می\u200cخواهم", "میخواهم")),
    ],
)
def test_words_are_equal_but_for_spelling(left: str, right: str) -> None:
    hashes = [shingles.hashes(shingles.WORD.findall(text)).tolist() for text in (left, right)]
    assert hashes[0] == hashes[1]


def test_vowel_signs_belong_to_their_word() -> None:
    assert shingles.WORD.findall("हिन्दी में, தமிழ்") == ["हिन्दी", "में", "தமிழ்"]
    assert shingles.normal("की") != shingles.normal("का")


def test_scripts_without_spaces_have_a_word_a_character() -> None:
    assert shingles.WORD.findall("我爱 ABC你 สวัส") == ["我", "爱", "ABC", "你", *"สวัส"]


@hypothesis.given(
    text=strategies.lists(strategies.integers(0, 2**64 - 1), max_size=20),
    n=strategies.integers(1, 6),
)
def test_ngrams_are_functions_of_their_items(text: list[int], n: int) -> None:
    found = shingles.ngrams(np.array(text, np.uint64), n).tolist()
    assert len(found) == max(len(text) - n + 1, 0)
    windows = [tuple(text[i : i + n]) for i in range(len(found))]
    assert len(set(zip(windows, found, strict=True))) == len(set(windows)) == len(set(found))


def test_an_index_is_the_same_from_disk_and_in_pieces(tmp_path) -> None:
    settings = minhash.MinHash()
    documents = family(4)
    index = minhash.index(documents, settings)
    index.save(tmp_path / "shard")
    index.save(tmp_path / "shard")  # once more, over it
    loaded = indexing.load(tmp_path / "shard")
    assert isinstance(loaded.hashes[0].base, np.memmap)
    assert survivors(documents, minhash.step([loaded], settings)) == survivors(
        documents, minhash.step([index], settings)
    )
    for table in range(settings.bands):
        whole = list(indexing.rows([index], table, index.files))
        pieces = list(indexing.rows([loaded], table, index.files, piece_rows=7))
        assert len(pieces) > 10
        for joined, part in zip(zip(*pieces, strict=True), whole[0], strict=True):
            assert np.concatenate(joined).tolist() == part.tolist()
        ends = [hashes for hashes, _ in pieces if len(hashes)]
        assert all(a[-1] < b[0] for a, b in itertools.pairwise(ends))


def test_what_cannot_be_compared_is_said() -> None:
    one, other = minhash.MinHash(), minhash.MinHash(rows=4)
    index = minhash.index([Document("a b c", id="f:1")], one)
    with pytest.raises(ValueError, match="14x8.*14x4"):
        minhash.step([index], other)
    with pytest.raises(ValueError, match="candidate_sets"):
        minhash.step([index], minhash.MinHash(similarity=0.8))
    with pytest.raises(ValueError, match="similarity=0"):
        minhash.MinHash(similarity=0)
    with pytest.raises(ValueError, match=r"unit='line'"):
        minhash.MinHash(unit="line")


def test_no_documents_are_no_clusters() -> None:
    settings = minhash.MinHash()
    for step in (
        exact.step([exact.index([])]),
        minhash.step([minhash.index([], settings)], settings),
    ):
        assert step(Document("a", id="f:1")) == Document("a", id="f:1")
