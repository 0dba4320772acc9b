"""Steps compiled ahead of time: what is asked wrongly is told, and answers hold what they say."""

import dataclasses
import importlib.util
import io
import json

import jax
import pytest
from rich.console import Console

from experiments import compile_tables, compiler, planner
from experiments.recipes import RECIPES
from llmjax import mesh, planning
from llmjax.mesh import MeshConfig


def small(**changes):
    recipe = RECIPES["tiny"]()
    return dataclasses.replace(recipe, mesh=MeshConfig(data=2, fsdp=4), **changes)


@pytest.fixture(scope="module")
def answer():
    """Of the shortest recipe on the devices of the tests, as if they were chips."""
    target = planning.Target("cpu:8", planning.chip("v5e"), jax.devices())
    return compiler.answer(small(), target)


def test_an_answer_is_json_with_all_that_the_tables_show(answer):
    read = json.loads(json.dumps(planner.finite(answer)))
    assert read["fits"] is True
    assert read["out_of_memory"] is None
    assert read["mesh"] == dict.fromkeys(mesh.AXES, 1) | {"data": 2, "fsdp": 4}
    assert read["pipeline"] == {"stages": 1, "bubble": 0.0}
    assert {row["axis"] for row in read["traffic"]} == {"data", "fsdp"}
    for row in read["collectives"]:
        assert set(row) == {"kind", "axes", "group", "calls", "bytes", "wire"}
    console = Console(file=io.StringIO(), width=100)
    compile_tables.show(answer, console)
    shown = console.file.getvalue()
    for word in ("parameters", "optimizer", "peak", "MFU", "all-gather", "fsdp", "advice"):
        assert word in shown


def test_memory_is_that_of_the_arrays(answer):
    """Float32 parameters, of which fsdp=4 holds a quarter, all but scales; AdamW's two moments."""
    memory = answer["memory"]
    params = 4 * 1e-9 * planner.work_of(small(), None, None).params
    assert memory["parameters"] * 1e-9 == pytest.approx(params / 4, rel=0.02)
    assert memory["gradients"] == memory["parameters"]
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.001)
    recipe = small()
    assert memory["batch"] == 4 * 4 * recipe.batch_size // 8 * recipe.sequence_length
    items = ("parameters", "gradients", "optimizer", "batch", "activations")
    assert sum(memory[item] for item in items) == pytest.approx(memory["peak"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "not a chip that.*v5p.*h100"),
        ("", "nothing is not a chip"),
        ("v5p", "a shape like 4x4x4"),
        ("v6e:16", "a shape like 4x4"),
        ("h100:x", "number of chips"),
        ("h100:12", "multiple of 8"),
    ],
)
def test_an_unknown_target_is_answered_with_what_is_known(name, message):
    with pytest.raises(ValueError, match=message):
        planning.target(name)


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="it is here")
def test_a_compiler_that_is_missing_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"llmjax\[cuda\]"):
        planning.target("h100:8")


# As libtpu says it.
TEMPORARIES = """RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO \
temporaries (32.00G) exceeds available HBM (15.75G)."""
PERMANENT = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory \
space hbm. Used 33.38G of 15.75G hbm. Exceeded hbm capacity by 17.63G.

Total hbm usage >= 33.63G:"""


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (TEMPORARIES, 32 * 2**30, 15.75 * 2**30),
        (PERMANENT, 33.38 * 2**30, 15.75 * 2**30),
        ("RESOURCE_EXHAUSTED: out of something", None, None),
    ],
)
def test_out_of_memory_is_read(message, needed, available):
    found = planning.out_of_memory(message)
    assert (found.needed, found.available) == (needed, available)


def test_another_error_is_no_answer():
    assert planning.out_of_memory("INTERNAL: Mosaic failed to compile") is None


def test_a_step_that_does_not_fit_is_advised(answer):
    refused = planning.out_of_memory("RESOURCE_EXHAUSTED: required (32.00G) exceeds (15.75G).")
    found = answer | {"fits": False, "out_of_memory": dataclasses.asdict(refused)}
    found["memory"] = answer["memory"] | {"available": 0.1 * answer["memory"]["peak"]}
    said = " ".join(compiler.advice(found | {"remat": "none"}))
    assert "--model.remat=full" in said
    assert "--mesh.fsdp" in said
    assert "--batch_size" in said
