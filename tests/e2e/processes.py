"""Training in processes of its own, that tests end before their time."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from llmjax.train.metrics import TIMINGS


def start(flags: Sequence[str], entry: str = "pretrain", **options) -> subprocess.Popen:
    """An entry point of `experiments` on one CPU device."""
    command = [sys.executable, "-m", f"experiments.{entry}", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, **options)


def records(run_dir: pathlib.Path) -> list[dict]:
    """All lines of metrics, without timings."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    plain = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in plain]


def signal_after(
    run_dir: pathlib.Path,
    lines: int,
    process: subprocess.Popen,
    number: int = signal.SIGKILL,
    delay: float = 0.0,
) -> int:
    """Sends a signal when metrics have so many lines, and a bit later; gives the exit code."""
    path = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= lines:
            time.sleep(delay)
            process.send_signal(number)
            break
        time.sleep(0.01)
    return process.wait()
