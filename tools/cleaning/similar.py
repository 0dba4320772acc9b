"""Compares near-duplicate detection with exact Jaccard similarities and with datasketch."""

import collections
import itertools
import math
import random
import re
import time
from collections.abc import Iterator, Sequence

from llmjax.data.cleaning import Document, minhash
from tools import corpora

Pair = tuple[int, int]
DOCUMENTS, PLANTED = 20_000, 2_000


def texts(seed: int = 0) -> list[str]:
    """Debian's English descriptions; a tenth are copies with some words changed."""
    draw = random.Random(seed)
    found = [record["text"] for record in corpora.read(corpora.fetch("debian"), "en")]
    kept = draw.sample(found, DOCUMENTS - PLANTED)
    copies = [edited(draw.choice(kept), draw.uniform(0, 0.1), draw) for _ in range(PLANTED)]
    return draw.sample(kept + copies, DOCUMENTS)


def edited(text: str, rate: float, draw: random.Random) -> str:
    """The text with words dropped, doubled and replaced at the given rate."""
    words = text.split()

    def changed(word: str) -> list[str]:
        if draw.random() >= rate:
            return [word]
        return draw.choice([[], [word, word], [draw.choice(words)]])

    return " ".join(itertools.chain.from_iterable(map(changed, words)))


def grams(text: str, n: int = 5) -> frozenset[str]:
    """The n-grams of words without numbers, as strings."""
    words = re.findall(r"[^\W_]+", re.sub(r"\d+", "0", text.lower()))
    n = max(1, min(n, len(words)))
    return frozenset(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def exact_pairs(sets: Sequence[frozenset[str]], threshold: float) -> set[Pair]:
    """All pairs above a Jaccard similarity, by prefix filtering (Bayardo et al. 2007).

    Two sets that are this similar share one of their rarest elements.
    """
    counts = collections.Counter(itertools.chain.from_iterable(sets))
    owners: dict[str, list[int]] = collections.defaultdict(list)
    found = set()
    for right, elements in enumerate(sets):
        prefix = len(elements) - math.ceil(threshold * len(elements)) + 1
        rarest = sorted(elements, key=lambda gram: (counts[gram], gram))[: max(prefix, 0)]
        near = {left for gram in rarest for left in owners[gram]}
        found |= {(left, right) for left in near if jaccard(sets[left], elements) >= threshold}
        for gram in rarest:
            owners[gram].append(right)
    return found


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """The Jaccard similarity of two sets."""
    both = len(left & right)
    return both / (len(left) + len(right) - both) if both else 0.0


def ours(documents: Sequence[str], settings: minhash.MinHash) -> set[Pair]:
    """The pairs found by our MinHash, verified if the settings ask for it."""
    shard = [Document(text, id=f"debian:{i}") for i, text in enumerate(documents)]
    pairs = minhash.candidates([minhash.index(shard, settings)], settings)
    if settings.similarity is not None:
        sets = minhash.candidate_sets(shard, pairs, settings)
        pairs = minhash.verified(pairs, sets, settings.similarity)
    ends = (map(pairs.files.id, keys.tolist()) for keys in (pairs.left, pairs.right))
    places = ([int(name.partition(":")[2]) for name in names] for names in ends)
    return set(zip(*places, strict=True))


def datasketch_pairs(sets: Sequence[frozenset[str]], **options: object) -> set[Pair]:
    """The pairs found by datasketch's MinHash and LSH."""
    import datasketch

    permutations = int(str(options["num_perm"]))
    lsh = datasketch.MinHashLSH(**options)
    found = set()
    for right, elements in enumerate(sets):
        if not elements:
            continue
        signature = datasketch.MinHash(num_perm=permutations)
        signature.update_batch([gram.encode() for gram in elements])
        found |= {(left, right) for left in lsh.query(signature)}
        lsh.insert(right, signature)
    return found


def judge(threshold: float = 0.8) -> Iterator[dict[str, object]]:
    """Precision, recall and seconds of each method."""
    documents = texts()
    sets = [grams(text) for text in documents]
    start = time.process_time()
    truth = exact_pairs(sets, threshold)
    yield {"method": "exact", "pairs": len(truth), "seconds": time.process_time() - start}
    everything = len(documents)
    methods = {
        "datasketch 14x8": lambda: datasketch_pairs(sets, num_perm=112, params=(14, 8)),
        "datasketch 0.8, 128": lambda: datasketch_pairs(sets, num_perm=128, threshold=threshold),
        "ours 14x8": lambda: ours(documents, minhash.MinHash(window=everything)),
        "ours 9x13": lambda: ours(documents, minhash.MinHash(bands=9, rows=13, window=everything)),
        "ours 14x8, verified": lambda: ours(
            documents, minhash.MinHash(window=everything, similarity=threshold)
        ),
        "ours 32x6, verified": lambda: ours(
            documents, minhash.MinHash(bands=32, rows=6, window=everything, similarity=threshold)
        ),
    }
    for name, method in methods.items():
        start = time.process_time()
        found = method()
        seconds = time.process_time() - start
        right = len(found & truth)
        yield {
            "method": name,
            "pairs": len(found),
            "precision": right / len(found),
            "recall": right / len(truth),
            "seconds": seconds,
        }
