"""The real training step compiles for TPU chips that are not there, and fits on them."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra `tpu`"
    ),
]

CHIPS = ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]
FOLDER = pathlib.Path(__file__).parent
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # or libtpu asks the cloud's metadata server what it runs on
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "PYTHONPATH": str(FOLDER.parents[1]),
}

# A recipe's decoder, made small.
DECODER = (
    "--recipe=llama3_8b",
    "--model.num_layers=4",
    "--model.embed_dim=4096",
    "--model.num_heads=32",
    "--model.num_kv_heads=8",
    "--model.mlp_dim=2048",
    "--model.vocab_size=2048",
    "--data.tokenizer.vocab_size=2048",
    "--model.max_length=512",
    "--sequence_length=512",
    "--batch_size=16",
)


def run(program: str, *arguments: str) -> dict[str, Any]:
    """What a program beside this one prints last."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / program), *arguments],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def compile_recipe(*flags: str) -> dict[str, Any]:
    """What `experiments.compile` answers."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compile", "--json", *flags],
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["fits"] is not bool(done.returncode)
    return answer


@pytest.mark.parametrize("topology", ["v5p:2x2x2", "v6e:2x4"])
def test_collectives_are_counted_as_often_as_loops_run(topology):
    """64 rows of 128 floats a device, 5 rounds, over 2 × 2 × 2 devices."""
    part = 5 * 4 * 64 * 128
    known = {  # bytes of arrays, and sent, by number of devices
        "all-gather": lambda n: (n * part, (n - 1) * part),
        "all-reduce": lambda n: (part, 2 * (n - 1) / n * part),
        "reduce-scatter": lambda n: (part, (n - 1) / n * part),
        "all-to-all": lambda n: (part, (n - 1) / n * part),
        "collective-permute": lambda n: (part, part),
    }
    for kind, axes, found in run("compile_collectives.py", topology):
        assert found == [[kind, axes, 5, *known[kind](2 ** len(axes))]]


@pytest.mark.parametrize("tensor", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_step_sends_little_more_than_the_least(tensor):
    """A decoder over 16 chips: all of them fsdp, or fsdp=4 × tensor=4."""
    answer = compile_recipe(*DECODER, "--target=v5e:4x4", f"--mesh.tensor={tensor}")
    sizes = {name: size for name, size in answer["mesh"].items() if size > 1}
    assert sizes == {"fsdp": 16 // tensor} | ({"tensor": tensor} if tensor > 1 else {})
    ratios = {row["axis"]: row["ratio"] for row in answer["traffic"]}
    assert ratios["fsdp"] < 1.05
    assert tensor == 1 or ratios["tensor"] < 1.05


@pytest.mark.slow
def test_a_chip_sends_as_much_among_256_as_among_16():
    """Per chip, but for its own part, which it need not send: four layers of Llama 3 8B."""
    sent, model = [], ("--recipe=llama3_8b", "--model.num_layers=4", "--sequence_length=512")
    for target, chips in (("v5e:4x4", 16), ("v5e:16x16", 256)):
        answer = compile_recipe(*model, f"--target={target}", f"--batch_size={chips}")
        (row,) = answer["traffic"]
        sent.append(row["wire"] * chips / (chips - 1))
    assert sent[0] == pytest.approx(sent[1], rel=0.02)


def test_only_the_outermost_axes_cross_between_slices():
    """Of two v5e:4x4: data of 2, fsdp of 32, which no slice holds, and stages."""
    report = run("compile_slices.py")
    assert report["crossing"] == [["data"], ["fsdp"], ["stage"]]
    assert report["fsdp"] < 1.2  # of so small a model


def test_a_step_that_does_not_fit_is_an_answer():
    answer = compile_recipe("--recipe=tiny", "--target=v5e:2x2", "--batch_size=1048576")
    assert answer["out_of_memory"]["needed"] > answer["out_of_memory"]["available"]
    assert answer["advice"]


def test_a_training_step_of_8b_parameters_compiles_for_sixteen_chips():
    """Llama 3.1 8B, fsdp=8 × tensor=2 of TPU v5p, bfloat16, rows of 8,192 tokens, all kernels."""
    report = run("compile_step.py", "8b", "v5p:2x2x4", "1", "8", "2")
    assert report["parameters"] == 8_030_261_248
    kernels = " ".join(report["kernels"])
    assert "flash_attention" in kernels
    assert "linear_cross_entropy" in kernels
    # float32 parameters and two moments, a sixteenth of each, and little else comes in.
    share = 12 * report["parameters"] / 16
    assert share < report["arguments"] < 1.01 * share
    # The state that comes out takes the place of the one that goes in.
    assert report["aliased"] > 0.99 * share
    assert report["largest_over_vocabulary"] < report["logits_on_a_chip"] / 2
    assert not report["square_in_length"]
    assert report["arguments"] + report["temporary"] < 95e9  # what a chip has
    assert "all-gather" in report["collectives"]
    assert {"all-reduce", "reduce-scatter"} & set(report["collectives"])


@pytest.mark.slow
def test_stages_of_shared_sequences_compile_with_their_kernels():
    """stage=2 × fsdp=2 × context=2 of TPU v5p: rings within stages, by Pallas' kernels."""
    report = run("compile_step.py", "small", "v5p:2x2x2", "1", "2", "1", "1", "2", "2")
    assert "flash_attention" in " ".join(report["kernels"])
    assert not report["square_in_length"]
    assert report["aliased"] > 0.99 * 12 * report["parameters"] / 8  # all three axes split it
    assert "collective-permute" in report["collectives"]


def test_a_sharded_encoder_holds_no_scores():
    """DeBERTa of two layers, fsdp=2 × tensor=2 of TPU v5e, rows of 1,024 tokens."""
    report = run("compile_step.py", "deberta", "v5e:2x2", "1", "2", "2")
    assert "disentangled_attention" in " ".join(report["kernels"])
    assert not report["square_in_length"]


def test_writing_a_token_copies_no_cache():
    """Rows of a cache are read by the kernel where they lie, and written in place."""
    report = run("compile_decoding.py", "v5e:2x2")
    assert report["attention_kernels"]
    assert report["aliased"] >= report["cache"]
    assert report["temporary"] < report["cache"] / 8  # there are 8 arrays


@pytest.mark.parametrize("topology", CHIPS)
def test_cross_entropy_compiles_and_holds_no_logits(topology):
    """Loss and gradients of published heads: a minute and a half of compilation a chip."""
    sizes = run("compile_cross_entropy.py", topology)
    materialised = sizes.pop("llama 3, materialised")
    assert materialised > 4 * 8192 * 128256
    assert sizes["llama 3"] < 0.15 * materialised
    # The tokens' hidden states, padded, say; logits would be ten times as large and more.
    assert max(sizes.values()) < 64 * 2**20, sizes


@pytest.mark.parametrize("topology", CHIPS)
def test_attention_compiles_and_its_memory_is_linear_in_the_length(topology):
    """2k, 8k and 32k tokens, heads of 64, 128 and 256: two minutes of compilation a chip."""
    for name, sizes in run("compile_attention.py", topology).items():
        # Arguments are linear in the length. So small an array that it stays in the core's own
        # memory is not counted, so lengths are not compared with each other.
        for temporary, arguments in sizes:
            assert temporary < 2 * arguments, name


@pytest.mark.parametrize("topology", CHIPS)
def test_disentangled_attention_compiles_and_its_memory_is_linear_in_the_length(topology):
    """As attention's, whose bound holds the tables as well.

    Of 4 arguments as long as a row, tables by distance are twice as long, two of them, in float32
    and rounded (3 times the arguments); their gradients come in windows that overlap (4 times), and
    are added up (twice). Scores of 32,768 tokens would be 128 times the arguments, or 64.
    """
    for name, (temporary, arguments) in run("compile_disentangled.py", topology).items():
        assert temporary < 12 * arguments, name


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "llama, dots", "gpt2", "bert", "experts"])
def test_memory_is_as_planned(case):
    """Of `planning.step_memory`, which compiles nothing; figures are in BENCH.md."""
    report = run("compile_memory.py", case)
    assert report["planned_arguments"] == pytest.approx(report["arguments"], rel=0.002)
    assert report["planned"] == pytest.approx(report["peak"], rel=0.05)
