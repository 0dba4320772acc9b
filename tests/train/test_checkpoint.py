"""Checkpoints come back bitwise, notice every damage, and fall back to the newest sound one."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llmjax.train import integrity
from llmjax.train.checkpoint import Checkpointer
from llmjax.train.loop import Pause
from llmjax.train.preemption import SaveOnSignal
from llmjax.train.state import TrainState

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def make_state(step: int, seed: int = 0, rows: int = 64) -> TrainState:
    key = jax.random.key(seed + step)
    params = {
        "embed": jax.random.normal(key, (rows, 32)),
        "half": jax.random.normal(key, (5, 3)).astype(jnp.bfloat16),
        "blocks": {"ids": jnp.arange(7, dtype=jnp.int32) + step},
    }
    floats = {"embed": params["embed"]}
    state = OPTIMIZER.init(floats)
    _, state = OPTIMIZER.update(floats, state, floats)
    return TrainState(step=jnp.int32(step), params=params, opt_state=state, key=key)


def abstract(state: TrainState) -> TrainState:
    return jax.eval_shape(lambda: state)


def bits(state) -> list[bytes]:
    plain = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        state,
    )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]


def save_all(directory: pathlib.Path, *steps: int, **options) -> None:
    with Checkpointer(directory, keep_last=10, **options) as checkpointer:
        for step in steps:
            checkpointer.save(make_state(step), data={"position": step}, metrics={"loss": 1.5})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Checkpoints of steps 10 and 20; copy before you break them."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save_all(directory, 10, 20)
    return directory


@pytest.fixture
def directory(saved, tmp_path) -> pathlib.Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_everything_comes_back_bitwise(saved):
    state = make_state(20)
    with Checkpointer(saved) as checkpointer:
        restored = checkpointer.restore_latest(abstract(state))
    assert (restored.step, restored.data) == (20, {"position": 20})
    assert restored.metrics == {"loss": 1.5}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), restored.state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert bits(restored.state) == bits(state)
    draw = jax.jit(lambda key: jax.random.normal(key, (3,)))
    np.testing.assert_array_equal(draw(restored.state.key), draw(state.key))


def test_a_part_comes_back_alone(saved):
    state = make_state(10)
    with Checkpointer(saved) as checkpointer:
        restored = checkpointer.restore(10, {"params": abstract(state).params})
    assert bits(restored.state) == bits({"params": state.params})


def test_iterator_state_may_be_bytes_and_must_survive_json(tmp_path):
    state = make_state(1)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state, data=b"\x00\xff")
        checkpointer.wait()
        assert checkpointer.restore_latest(abstract(state)).data == b"\x00\xff"
        with pytest.raises(ValueError, match="JSON"):
            checkpointer.save(state, data={1: (2, 3)})


def test_shardings_are_those_asked_for(tmp_path):
    state = make_state(3)
    mesh = jax.make_mesh((8,), ("fsdp",))
    rows, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda x: rows if x.shape == (64, 32) else whole, state)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(jax.device_put(state, shardings))
        checkpointer.wait()
        restored = checkpointer.restore_latest(target).state
        on_one_device = checkpointer.restore_latest(abstract(state)).state
        with jax.set_mesh(mesh):  # there, eval_shape gives shardings over an abstract mesh
            traced = jax.eval_shape(lambda state: state, restored)
            again = checkpointer.restore_latest(traced).state
    same = jax.tree.map(
        lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), restored, again
    )
    assert all(jax.tree.leaves(same))
    assert restored.params["embed"].sharding.is_equivalent_to(rows, 2)
    assert bits(restored) == bits(on_one_device) == bits(state)


def test_saved_values_are_the_steps_although_the_next_steps_take_the_buffers(tmp_path):
    step = jax.jit(
        lambda s: s.replace(step=s.step + 1, params=jax.tree.map(lambda x: x * 3 + 1, s.params)),
        donate_argnums=0,
    )
    state = make_state(0, rows=20_000)
    with Checkpointer(tmp_path, keep_last=10) as checkpointer:
        expected = {}
        for _ in range(3):
            state = step(state)
            expected[int(state.step)] = [bytes(b) for b in bits(jax.tree.map(jnp.copy, state))]
            checkpointer.save(state)
            for _ in range(3):  # while the save runs
                state = step(state)
        checkpointer.wait()
        for number, value in expected.items():
            assert bits(checkpointer.restore(number, abstract(state)).state) == value


def test_every_flipped_bit_is_noticed(directory):
    """Positions drawn in every file of the checkpoint, the manifest included."""
    generator = random.Random(0)
    folder = directory / "20"
    flips = 0
    for path in files(folder):
        original = path.read_bytes()
        for _ in range(6):
            if not original:
                break
            bit = generator.randrange(8 * len(original))
            broken = bytearray(original)
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            with pytest.raises(integrity.DamagedError):
                integrity.verify(integrity.epath.Path(folder))
            flips += 1
        path.write_bytes(original)
    assert flips >= 40
    integrity.verify(integrity.epath.Path(folder))


def flip(folder: pathlib.Path) -> None:
    path = max(files(folder / "state"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: pathlib.Path) -> None:
    path = max(files(folder / "state"), key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


def empty(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def half_write(folder: pathlib.Path) -> None:
    (folder / "UNFINISHED").touch()
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "state")


def lose_manifest(folder: pathlib.Path) -> None:
    (folder / "manifest.json").unlink()


def add_file(folder: pathlib.Path) -> None:
    (folder / "state" / "extra").write_text("?")


@pytest.mark.parametrize("damage", [flip, truncate, empty, half_write, lose_manifest, add_file])
def test_restoring_falls_back_says_so_and_later_saves_replace(directory, damage):
    damage(directory / "20")
    with Checkpointer(directory) as checkpointer:
        with pytest.warns(RuntimeWarning, match=f"passed over .*{directory / '20'}"):
            restored = checkpointer.restore_latest(abstract(make_state(10)))
        assert (restored.step, restored.data) == (10, {"position": 10})
        assert bits(restored.state) == bits(make_state(10))
        with pytest.raises(integrity.DamagedError):
            checkpointer.restore(20, abstract(make_state(20)))
        checkpointer.save(make_state(20, seed=7))
        checkpointer.wait()
        again = checkpointer.restore_latest(abstract(make_state(20)))
    assert again.step == 20
    assert bits(again.state) == bits(make_state(20, seed=7))


def test_an_empty_newer_folder_is_passed_over(directory):
    (directory / "90").mkdir()
    with Checkpointer(directory) as checkpointer, pytest.warns(RuntimeWarning, match="90"):
        assert checkpointer.restore_latest(abstract(make_state(20))).step == 20


def test_all_damaged_raises_and_never_starts_afresh(directory):
    flip(directory / "10")
    empty(directory / "20")
    with (
        Checkpointer(directory) as checkpointer,
        pytest.warns(RuntimeWarning, match="passed over"),
        pytest.raises(integrity.DamagedError, match=r"no checkpoint .* is sound"),
    ):
        checkpointer.restore_latest(abstract(make_state(0)))


def test_nothing_completed_is_a_fresh_start(tmp_path, directory):
    with Checkpointer(tmp_path / "none") as checkpointer:
        assert checkpointer.restore_latest(abstract(make_state(0))) is None
    shutil.rmtree(directory / "10")
    half_write(directory / "20")
    with Checkpointer(directory) as checkpointer, pytest.warns(RuntimeWarning, match="was killed"):
        assert checkpointer.restore_latest(abstract(make_state(0))) is None


def test_a_save_below_what_is_there_drops_the_abandoned_future(directory):
    with Checkpointer(directory, keep_last=5) as checkpointer:
        checkpointer.restore(10, abstract(make_state(10)))
        checkpointer.save(make_state(15))
        checkpointer.wait()
        assert checkpointer.steps() == [10, 15]


def test_last_and_best_are_kept(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: None, 4: 4.0, 5: float("nan"), 6: 3.5}
    with Checkpointer(tmp_path, keep_last=2, keep_best=2) as checkpointer:
        for step, loss in losses.items():
            metrics = {} if loss is None else {"validation_loss": loss}
            checkpointer.save(make_state(step), metrics=metrics)
        checkpointer.wait()
        assert checkpointer.steps() == [2, 5, 6]
        assert checkpointer.restore_best(abstract(make_state(0))).step == 2
        flip(tmp_path / "2")
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert checkpointer.restore_best(abstract(make_state(0))).step == 6


def test_another_model_is_named(saved):
    state = make_state(0)
    other = dataclasses.replace(state, params={**state.params, "embed": jnp.zeros((65, 32))})
    fewer = dataclasses.replace(state, params={"embed": state.params["embed"]})
    with Checkpointer(saved) as checkpointer:
        with pytest.raises(ValueError, match=r"params/embed is float32\[64, 32\] and should be"):
            checkpointer.restore_latest(abstract(other))
        with pytest.raises(ValueError, match="params/half is not wanted"):
            checkpointer.restore_latest(abstract(fewer))
        with pytest.raises(ValueError, match="params/more is missing"):
            checkpointer.restore(10, {"params": {"more": jnp.zeros(3)}})
        with pytest.raises(FileNotFoundError, match=r"there are \[10, 20\]"):
            checkpointer.restore(11, abstract(state))


def test_a_failed_save_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "write", lambda *_, **__: exec("raise OSError('disk full')"))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(make_state(1))
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save(make_state(2))
    assert checkpointer.steps() == []
    checkpointer.close()


def test_bad_options_are_answered(tmp_path):
    for options in ({"keep_last": 0}, {"keep_best": -1}, {"mode": "lowest"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Checkpointer(tmp_path, **options)


def test_sigterm_saves_the_step_under_way_and_exits(tmp_path, capsys):
    class Batches:
        def get_state(self):
            return {"position": 4}

    with Checkpointer(tmp_path) as checkpointer:
        hook = SaveOnSignal(checkpointer)
        try:
            assert not hook.due(3)
            os.kill(os.getpid(), signal.SIGTERM)
            assert hook.due(4)
            pause = Pause(4, {"loss": 2.0}, 0.1, make_state(4), Batches())
            with pytest.raises(SystemExit) as ended:
                hook(pause)
        finally:
            hook.restore_handlers()
        assert ended.value.code == 143
        assert "saved step 4" in capsys.readouterr().err
        restored = checkpointer.restore_latest(abstract(make_state(0)))
        assert (restored.step, restored.data) == (4, {"position": 4})


KILLED_WHILE_SAVING = """
    import os, sys, jax, jax.numpy as jnp
    from llmjax.train import integrity
    from llmjax.train.checkpoint import Checkpointer
    from llmjax.train.state import TrainState

    def state(step):
        return TrainState(jnp.int32(step), {"w": jnp.full((9,), step)}, {}, jax.random.key(step))

    with Checkpointer(sys.argv[1]) as checkpointer:
        checkpointer.save(state(1))
        checkpointer.wait()
        integrity.write = lambda *_, **__: os._exit(9)
        checkpointer.save(state(2))
"""


def test_killed_before_the_manifest_falls_back(tmp_path):
    code = textwrap.dedent(KILLED_WHILE_SAVING)
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=120)
    assert run.returncode == 9
    target = {"params": {"w": jax.ShapeDtypeStruct((9,), jnp.int32)}}
    with Checkpointer(tmp_path) as checkpointer, pytest.warns(RuntimeWarning, match="was killed"):
        restored = checkpointer.restore_latest(target)
    assert restored.step == 1
    np.testing.assert_array_equal(restored.state["params"]["w"], np.ones(9))


def test_what_is_stored_is_plain_to_read(saved):
    about = json.loads((saved / "20" / "checkpoint.json").read_text())
    assert about["step"] == 20
    assert about["arrays"]["params/embed"] == ["float32", [64, 32]]
    assert about["arrays"]["key"] == ["key<fry>", []]
