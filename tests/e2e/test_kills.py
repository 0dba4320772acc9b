"""Law 7 at random: 25 runs, killed anywhere, are byte for byte the run that never was."""

import json
import pathlib
import random
import signal

import jax
import numpy as np
import pytest

from experiments import runs
from tests.e2e.processes import records, signal_after, start

pytestmark = pytest.mark.slow

STEPS = 40
SMALL = (
    f"--steps={STEPS}",
    "--batch_size=8",
    "--checkpoint_every=3",
    "--evaluate_every=10",
    "--evaluate_batches=2",
    "--optimizer.warmup_steps=2",
    # So near that some steps are skipped, and the statistics show in the parameters.
    "--spikes.window=4",
    "--spikes.sigma=1.5",
    "--early_stopping.patience=50",
)
PRETRAINED = (
    "--sequence_length=32",
    "--model.num_layers=1",
    "--model.embed_dim=32",
    "--model.dropout.hidden=0.1",
    "--model.dropout.attention=0.1",
    "--corpus=python_topics",
    "--data.tokenizer.kind=sentencepiece",
    "--data.tokenizer.vocab_size=512",
    "--model.vocab_size=512",
)
RUNS = {
    "clm": ("--recipe=tiny", "--packing=concat"),
    "clm-best_fit": ("--recipe=tiny", "--packing=best_fit", "--accumulate=2"),
    "mlm": ("--recipe=modernbert_tiny", "--packing=best_fit"),
    "rtd": ("--recipe=deberta_tiny", "--packing=concat"),
}


@pytest.mark.parametrize("name", RUNS)
def test_kills_at_random(name: str, tmp_path: pathlib.Path) -> None:
    flags = [*RUNS[name], *SMALL, *PRETRAINED, f"--data.directory={tmp_path / 'data'}"]
    _kill("pretrain", name, flags, tmp_path)


def test_kills_at_random_while_fine_tuning(tmp_path: pathlib.Path) -> None:
    base, examples = tmp_path / "base", tmp_path / "examples.jsonl"
    small = [flag for flag in PRETRAINED if not flag.startswith("--sequence_length")]
    short = ["--steps=4", "--optimizer.warmup_steps=1", "--evaluate_every=0"]
    data = f"--data.directory={tmp_path / 'data'}"
    flags = ["--recipe=tiny", "--sequence_length=128", "--model.max_length=128", *small, *short]
    assert start([*flags, data, f"--run_dir={base}"]).wait() == 0
    lines = [{"instruction": f"Say {i}.", "output": f"The word is {i}."} for i in range(200)]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [
        "--recipe=full",
        f"--base={base}",
        f"--data.sources=name=asked,path={examples}",
        f"--data.directory={tmp_path / 'prepared'}",
        "--sequence_length=128",
        "--packing=best_fit",
        "--dropout.hidden=0.1",
        "--dropout.attention=0.1",
        *SMALL,
    ]
    _kill("finetune", "sft", flags, tmp_path)


def _kill(entry: str, name: str, flags: list[str], tmp_path: pathlib.Path) -> None:
    """Five runs, each killed once or twice: between lines of metrics, and while starting,
    compiling, evaluating or saving, as chance will have it."""
    draw = random.Random(name)
    whole = tmp_path / "whole"
    assert start([*flags, f"--run_dir={whole}"], entry).wait() == 0
    expected, model = records(whole), runs.load(whole, best=False)
    assert [r["step"] for r in expected if "loss" in r] == list(range(1, STEPS + 1))
    assert 0 < expected[-2]["skipped_total"] < STEPS
    for trial in range(5):
        cut = tmp_path / str(trial)
        for lines in sorted(draw.sample(range(STEPS), 1 + trial % 2)):
            process = start([*flags, f"--run_dir={cut}"], entry)
            delay = draw.uniform(0.0, 0.1)
            assert signal_after(cut, lines, process, delay=delay) == -signal.SIGKILL
        assert start([*flags, f"--run_dir={cut}"], entry).wait() == 0
        assert records(cut) == expected
        found = runs.load(cut, best=False)
        for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(found.params), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
