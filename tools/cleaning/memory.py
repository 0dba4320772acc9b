"""Measures the memory and speed of cleaning on a corpus and on one ten times as large.

    python -m tools.cleaning.memory --times=1,10 --steps=standard

The corpus repeats Debian's descriptions with a distinct number in each, so that there are no exact
copies. Each size is cleaned in a separate process by one worker.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from llmjax.data import config, documents
from llmjax.data.cleaning import pipeline
from llmjax.data.cleaning.config import CleaningConfig
from tools import corpora


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", default="1,10", help="corpus repetitions, comma-separated")
    parser.add_argument("--documents", type=int, default=10_000, help="documents per repetition")
    parser.add_argument("--steps", default="standard", help="comma-separated names of steps")
    parser.add_argument("--part_bytes", type=int, default=1 << 22, help="as CleaningConfig's")
    parser.add_argument("--input", type=pathlib.Path, help="clean this file and print the cost")
    options = parser.parse_args()
    if options.input:
        print(json.dumps(measure(options.input, options.steps, options.part_bytes)))
        return
    corpus = list(corpora.read(corpora.fetch("debian")))[: options.documents]
    with tempfile.TemporaryDirectory() as folder:
        for times in map(int, options.times.split(",")):
            path = pathlib.Path(folder, f"{times}.jsonl")
            with path.open("w") as stream:
                for number in range(times):
                    for record in corpus:
                        text = f"{record['text']} This is number {number}."
                        stream.write(json.dumps({"text": text}) + "\n")
            command = [sys.executable, "-m", "tools.cleaning.memory", f"--input={path}"]
            command += [f"--steps={options.steps}", f"--part_bytes={options.part_bytes}"]
            print(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            )


def measure(path: pathlib.Path, steps: str, part_bytes: int) -> dict[str, object]:
    """Cleans a file; returns documents, CPU seconds, their quotient, and peak memory in MB."""
    source = config.Source("s", str(path))
    cleaning = CleaningConfig(tuple(steps.split(",")), part_bytes=part_bytes)
    settings = config.DataConfig((source,), cleaning=cleaning)
    inputs = {"s": documents.find_files(source)}
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        counts = pipeline.clean_sources(settings, inputs, pathlib.Path(folder))["s"]
        seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = path.stat().st_size / 1e6
    return {
        "documents": counts.documents,
        "kept": counts.kept,
        "MB": round(size, 1),
        "CPU seconds": round(seconds, 1),
        "documents/s": round(counts.documents / seconds),
        "MB/s": round(size / seconds, 2),
        "peak MB": round(peak),
    }


if __name__ == "__main__":
    main()
