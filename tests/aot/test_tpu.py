"""The real training step compiles for TPU chips that are not there, and fits on them."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra `tpu`"
    ),
]

PROGRAM = pathlib.Path(__file__).with_name("compile_step.py")
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # or libtpu asks the cloud's metadata server what it runs on
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "PYTHONPATH": str(PROGRAM.parents[2]),
}


def test_a_sharded_training_step_compiles_for_eight_chips():
    """fsdp=4 × tensor=2 of TPU v5e, bfloat16, rematerialised: a minute or two of compilation."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "v5e:2x4", "1", "4", "2"],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    # float32 parameters and two moments, an eighth of each, and little else comes in.
    share = 12 * report["parameters"] / 8
    assert share < report["arguments"] < 1.01 * share
    # The state that comes out takes the place of the one that goes in.
    assert report["aliased"] > 0.99 * share
    # Neither a chip's part of the logits, nor activations that are computed again, are kept.
    assert report["largest_array"] < report["logits_on_a_chip"] / 2
    assert report["temporary"] < 3 * share
    assert "all-gather" in report["collectives"]
    assert {"all-reduce", "reduce-scatter"} & set(report["collectives"])
