"""Compares a whole cleaning run with the same pipeline in datatrove, from file to files.

    python -m tools.cleaning.whole --documents=8000 --join=5 --turns=3

Both read one JSONL file of Debian's descriptions and apply, in this order: repair, language,
Gopher's, C4's and FineWeb's rules, near duplicates by 14 bands of 8, and personal data.
datatrove's formatter handles e-mail and IP addresses, ours all its default kinds. Each turn is a
separate process with one worker. Seconds are CPU time, including loading.
"""

import argparse
import itertools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

from llmjax.data import config, documents
from llmjax.data.cleaning import language, pipeline
from llmjax.data.cleaning.config import STANDARD, CleaningConfig
from tools import corpora

# Texts have neither addresses nor markup, and datatrove has no step that bounds their length.
STEPS = tuple(name for name in STANDARD if name not in ("urls", "html", "length"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=8000, help="total number (default: 8000)")
    parser.add_argument("--join", type=int, default=5, help="descriptions each (default: 5)")
    parser.add_argument("--turns", type=int, default=3, help="timed runs per side (default: 3)")
    parser.add_argument("--folder", type=pathlib.Path, default=corpora.default_folder())
    parser.add_argument("--input", type=pathlib.Path, help="clean this file with --side")
    parser.add_argument("--side", choices=sorted(SIDES), help="of --input")
    options = parser.parse_args()
    if options.input:
        with tempfile.TemporaryDirectory() as folder:
            kept = SIDES[options.side](options.input, pathlib.Path(folder))
        print(json.dumps({"kept": kept, "seconds": _seconds(), "MB": _peak()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "documents.jsonl")
        _write(path, options)
        _compare(path, options)


def _write(path: pathlib.Path, options: argparse.Namespace) -> None:
    records = corpora.read(corpora.fetch("debian", options.folder), "en")
    texts = (record["text"] for record in records)
    joined = iter(lambda: "\n\n".join(itertools.islice(texts, options.join)), "")
    with path.open("w") as stream:
        for number, text in enumerate(itertools.islice(joined, options.documents)):
            stream.write(json.dumps({"id": str(number), "text": text}) + "\n")


def _compare(path: pathlib.Path, options: argparse.Namespace) -> None:
    """Runs both sides in turns and prints a table of medians."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.turns):
        for side, turns in found.items():
            command = [sys.executable, "-m", "tools.cleaning.whole", f"--side={side}"]
            done = subprocess.run([*command, f"--input={path}"], capture_output=True, text=True)
            if done.returncode:  # datatrove's log of each task is worth reading only then
                sys.exit(done.stderr)
            turns.append(json.loads(done.stdout.splitlines()[-1]))
    size = path.stat().st_size / 1e6
    print("| side | kept | CPU, s | documents/s | MB/s | peak, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for side, turns in found.items():
        seconds, peak = (
            statistics.median(turn[key] for turn in turns) for key in ("seconds", "MB")
        )
        print(
            f"| {side} | {turns[0]['kept']:,} | {seconds:.1f} | {options.documents / seconds:,.0f}"
            f" | {size / seconds:.2f} | {peak:.0f} |"
        )
    pairs = zip(found["datatrove"], found["llmjax"], strict=True)
    speed = statistics.median(theirs["seconds"] / ours["seconds"] for theirs, ours in pairs)
    print(f"\n{speed:.2f} times datatrove's speed, {size:.1f} MB")


def _seconds() -> float:
    """CPU time of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak() -> float:
    """Peak memory of the largest process, in MB."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(one.ru_maxrss for one in used) / 1024


def _ours(path: pathlib.Path, folder: pathlib.Path) -> int:
    source = config.Source("s", str(path))
    settings = config.DataConfig((source,), cleaning=CleaningConfig(STEPS))
    inputs = {"s": documents.find_files(source)}
    return pipeline.clean_sources(settings, inputs, folder)["s"].kept


def _theirs(path: pathlib.Path, folder: pathlib.Path) -> int:
    """datatrove's stock blocks, one task each."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import filters, formatters
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils import lid

    # A local model replaces the one that datatrove would download. It is set here because executors
    # copy blocks, and models cannot be copied.
    lid.FastTextLID.model = property(lambda _: language._model())
    places = {name: str(folder / name) for name in ("good", "signatures", "buckets", "ids", "end")}
    settings = minhash.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    read = [
        JsonlReader(str(path.parent), glob_pattern=path.name),
        formatters.FTFYFormatter(unescape_html=False, uncurl_quotes=False),
        filters.LanguageFilter(languages=["en"]),
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.C4QualityFilter(filter_no_terminal_punct=False),
        filters.FineWebQualityFilter(),
        JsonlWriter(places["good"]),
    ]
    sign = [
        JsonlReader(places["good"]),
        minhash.MinhashDedupSignature(places["signatures"], settings),
    ]
    match = [minhash.MinhashDedupBuckets(places["signatures"], places["buckets"], config=settings)]
    cluster = [minhash.MinhashDedupCluster(places["buckets"], places["ids"], config=settings)]
    filter_ = [
        JsonlReader(places["good"]),
        minhash.MinhashDedupFilter(places["ids"]),
        formatters.PIIFormatter(),
        JsonlWriter(places["end"]),
    ]
    for number, blocks in enumerate((read, sign, match, cluster, filter_)):
        tasks = settings.num_buckets if blocks is match else 1
        log = str(folder / f"log{number}")
        LocalPipelineExecutor(blocks, tasks=tasks, workers=1, logging_dir=log).run()
    return sum(1 for _ in JsonlReader(places["end"]).run())


SIDES: dict[str, Callable[[pathlib.Path, pathlib.Path], int]] = {
    "llmjax": _ours,
    "datatrove": _theirs,
}


if __name__ == "__main__":
    main()
