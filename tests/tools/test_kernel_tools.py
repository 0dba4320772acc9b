"""Kernels are compared before they are timed, and what tuning finds is what they then use."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax.kernels import tuning
from tools import bench_gpu, tune_kernels
from tools.benchmark import kernels
from tools.benchmark.kernels import Case, DisagreementError, measure


def case(**contenders) -> Case:
    return Case("sum", lambda: (jnp.ones((64, 64)),), contenders, work=64 * 64.0)


def refuses(x):
    raise ValueError("has no time\nreally")


def test_figures_are_of_every_contender_that_runs() -> None:
    told = []
    rows = [
        *measure(
            case(first=jnp.sum, second=lambda x: x.sum(0).sum(), third=refuses), 2, told.append
        )
    ]
    assert [row.contender for row in rows] == ["first", "second", "third"]
    first, second, third = rows
    assert third.refused == "has no time"
    assert first.speed == 1
    assert second.speed == pytest.approx(first.milliseconds / second.milliseconds)
    assert first.rate == pytest.approx(64 * 64 / first.milliseconds * 1e3)
    assert len(told) == 3


@pytest.mark.parametrize("wrong", [lambda x: 1.01 * jnp.sum(x), lambda x: jnp.sum(x) * jnp.nan])
def test_who_computes_something_else_is_not_timed(wrong) -> None:
    with pytest.raises(DisagreementError, match="sum: second is off by"):
        list(measure(case(first=jnp.sum, second=wrong), 1, lambda text: None))


def test_the_gpu_benchmark_rehearses(capsys) -> None:
    bench_gpu.main(["--rehearse", "--rounds=1", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ran = {(row["case"], row["contender"]) for row in rows if not row["refused"]}
    for name in ("attention forward", "attention and gradients", "cross entropy", "decoding"):
        assert {(name, "xla"), (name, "pallas_gpu")} <= ran
    assert all(row["refused"] for row in rows if row["contender"] == "cudnn")
    assert all(row["error"] <= kernels.TOLERANCES["bfloat16"] for row in rows)


def test_a_gpu_benchmark_without_a_gpu_says_so(capsys) -> None:
    with pytest.raises(SystemExit):
        bench_gpu.main([])
    assert "no GPU" in capsys.readouterr().err


class Sizes(NamedTuple):
    block: int
    stages: int = 2


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Where the sizes are, for a while."""
    file = tmp_path / "tuned.json"
    monkeypatch.setattr(tuning, "FILE", file)
    tuning.table.cache_clear()

    def write(content):
        file.write_text(json.dumps(content))
        tuning.table.cache_clear()

    write({})
    yield write
    tuning.table.cache_clear()


def test_sizes_are_those_of_this_kind_of_device(table) -> None:
    kind = jax.devices()[0].device_kind
    name = tuning.case(jnp.bfloat16, 96)
    assert name == "bfloat16, 128 channels"
    default = Sizes(1)
    assert tuning.sizes("attention", name, default) == default
    table({kind: {"attention": {name: {"block": 5}}}, "other": {"attention": {name: {"block": 6}}}})
    assert tuning.sizes("attention", name, default) == Sizes(5, 2)
    assert tuning.sizes("attention", tuning.case(jnp.float32, 96), default) == default
    with tuning.trial("attention", {"stages": 3}):
        assert tuning.sizes("attention", name, default) == Sizes(1, 3)
    table({kind: {"attention": {name: {"width": 5}}}})
    with pytest.raises(ValueError, match=r"attention has the sizes \['block', 'stages'\]"):
        tuning.sizes("attention", name, default)


def test_tuning_writes_what_is_faster(table, monkeypatch, capsys) -> None:
    """A kernel that is slow by as many rounds as its block says."""

    def run(x):
        rounds = tuning.sizes("toy.xla", tuning.case(x.dtype, 64), Sizes(40)).block
        return jax.lax.fori_loop(0, rounds, lambda i, y: y @ x, x)

    # The unit matrix, so that all rounds find the same.
    toy = Case("toy", lambda: (jnp.eye(64),), {"default": run}, work=1.0)
    subject = tune_kernels.Subject("toy.xla", ("cpu",), lambda *_: toy, {"block": (1, 80)})
    monkeypatch.setattr(tune_kernels, "SUBJECTS", (subject,))
    arguments = ["--channels=64", "--dtype=float32", "--rounds=2"]
    tune_kernels.main([*arguments, "--dry-run"])
    assert json.loads(tuning.FILE.read_text()) == {}
    tune_kernels.main(arguments)
    kind = jax.devices()[0].device_kind
    expected = {kind: {"toy.xla": {"float32, 64 channels": {"block": 1}}}}
    assert json.loads(tuning.FILE.read_text()) == expected
    assert "block 1" in capsys.readouterr().out
    np.testing.assert_array_equal(jax.jit(run)(jnp.eye(64)), np.eye(64))


def test_every_subject_has_sizes_that_its_kernel_takes(monkeypatch) -> None:
    """On this platform: the others' kernels run only there."""
    asked: dict[str, set[str]] = {}
    found = tuning.sizes

    def remember(kernel, case, default):
        asked[kernel] = set(default._asdict())
        return found(kernel, case, default)

    monkeypatch.setattr(tuning, "sizes", remember)
    for subject in tune_kernels.SUBJECTS:
        case = subject.case(16, "float32")
        arrays = jax.eval_shape(case.arrays)
        jax.eval_shape(case.contenders["default"], *arrays)
        assert subject.candidates.keys() <= asked[subject.kernel], subject.kernel
