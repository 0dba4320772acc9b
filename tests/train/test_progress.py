"""The display: everything on a terminal, plain lines anywhere else."""

import io
import re

import pytest
from rich.console import Console

from llmjax.train.progress import Progress

EVALUATION = {"step": 20, "validation_loss": 3.5, "perplexity": 33.1, "bits_per_byte": 1.6}


def run(progress: Progress, steps: int = 40) -> None:
    with progress:
        for step in range(1, steps + 1):
            speed = {"tokens_per_s": 12_345.0, "mfu": 0.61}
            progress.write({"step": step, "loss": 8 / step, "learning_rate": 3e-4, **speed})
            if step == 20:
                progress.write(EVALUATION)
                progress.sample("Hello", "there,\x1b[31m\nold\x00 friend [bold]")


@pytest.fixture
def plain(monkeypatch):
    """A console on a file; colour is not forced by the environment of the tests."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Console(file=io.StringIO())


def test_no_terminal_no_control_codes(plain):
    run(Progress(40, console=plain, interval=3600.0))
    text = plain.file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    compiling, first, validation, sample, last = text.splitlines()
    assert "compiling" in compiling
    assert first.startswith(
        "step 1/40  loss 8.000  learning rate 3.00e-04  12,345 tokens/s  MFU 61%"
    )
    assert validation == (
        "validation at step 20: loss 3.500  perplexity 33.10  1.600 bits per byte"
    )
    assert sample.startswith("sample: Hello → there,")
    assert last.startswith("step 40/40")
    assert "left" in last


def test_plain_lines_come_by_time(plain):
    run(Progress(40, console=plain, interval=0.0))
    assert len(plain.file.getvalue().splitlines()) == 43


def test_a_terminal_shows_all_of_it():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="truecolor")
    progress = Progress(40, console=console, title="pretrain")
    with progress:
        pass
    assert "compiling the step" in console.file.getvalue()
    run(progress)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    for part in ("pretrain", "40/40", "elapsed", "left", "MFU 61%", "▁", "█", "perplexity 33.10"):
        assert part in text
    assert "friend [bold]" in text  # no markup in what a model wrote


def test_a_narrow_terminal_and_a_missing_loss_are_no_trouble():
    console = Console(file=io.StringIO(), force_terminal=True, width=20)
    progress = Progress(40, start=10, console=console)
    with progress:
        progress.write({"step": 11, "loss": float("nan")})
        progress.write({"step": 12})
    assert "12/40" in console.file.getvalue()
