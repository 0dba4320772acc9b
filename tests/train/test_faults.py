"""Whatever happens to a checkpoint, no wrong weight is restored and the last sound one stays."""

import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax.train import integrity
from llmjax.train.checkpoint import Checkpointer, SaveError
from tests.train.states import abstract, bits, files, flip, make_state


def regions(folder: pathlib.Path, trials: int) -> list[tuple[pathlib.Path, int]]:
    """Places in all files of a checkpoint, ends included; large files have more."""
    draw = random.Random(0)
    places = []
    for path in files(folder):
        size = path.stat().st_size
        places += [(path, place) for place in {0, size // 2, size - 1} if size]
    sizes = [path.stat().st_size ** 0.5 for path in files(folder)]
    for path in draw.choices(files(folder), sizes, k=trials - len(places)):
        places.append((path, draw.randrange(path.stat().st_size)))
    return places


def test_no_flip_or_cut_anywhere_restores_a_wrong_weight(directory):
    """200 trials over all regions of all files, manifest included, in turn a bit and a cut."""
    target, sound = abstract(make_state(10)), bits(make_state(10))
    places = regions(directory / "20", 200)
    assert len(places) == 200
    with Checkpointer(directory) as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial, (path, place) in enumerate(places):
            original = path.read_bytes()
            broken = bytearray(original)
            broken[place] ^= 1 << trial % 8
            path.write_bytes(broken if trial % 3 else original[:place])
            with pytest.raises(integrity.DamagedError):
                integrity.verify(checkpointer.directory / "20")
            if trial % 5 == 0:
                restored = checkpointer.restore_latest(target)
                assert (restored.step, bits(restored.state)) == (10, sound)
            path.write_bytes(original)
        assert checkpointer.restore_latest(target).step == 20


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
        with pytest.warns(RuntimeWarning, match=f"skipped .*{directory / '20'}"):
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
        pytest.warns(RuntimeWarning, match="skipped"),
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


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize(
    ("damage", "kind"), [(flip, "damaged"), (empty, "damaged"), (half_write, "unfinished")]
)
def test_the_run_sets_it_aside_and_keeps_what_is_damaged(directory, damage, kind):
    damage(directory / "20")
    kept = {path.name: path.read_bytes() for path in files(directory / "20")}
    with Checkpointer(directory) as checkpointer:
        with pytest.warns(RuntimeWarning, match=f"set aside: it is now 20.{kind}"):
            restored = checkpointer.restore_latest(abstract(make_state(10)), set_aside=True)
        assert restored.step == 10
        aside = directory / f"20.{kind}"
        assert {path.name: path.read_bytes() for path in files(aside)} == kept
        assert checkpointer.steps() == [10]
        checkpointer.save(make_state(20))
        checkpointer.wait()
        assert aside.exists() == (kind == "damaged")
        assert checkpointer.restore_latest(abstract(make_state(20))).step == 20
        damage(directory / "20")
        with pytest.warns(RuntimeWarning, match=f"20.{kind}"):
            checkpointer.restore_latest(abstract(make_state(10)), set_aside=True)
    assert (directory / "20.damaged.2").exists() == (kind == "damaged")


def test_damage_of_all_is_not_set_aside_for_the_next_start_must_see_it_too(directory):
    for step in (10, 20):
        flip(directory / str(step))
    for _ in range(2):
        with (
            Checkpointer(directory) as checkpointer,
            pytest.warns(RuntimeWarning, match="skipped"),
            pytest.raises(integrity.DamagedError, match=r"no checkpoint .* is sound"),
        ):
            checkpointer.restore_latest(abstract(make_state(0)), set_aside=True)


@pytest.mark.parametrize("sound", ["1", "1.replaced"])
def test_the_last_sound_one_stays_when_the_new_one_does_not_read_back(sound, tmp_path, monkeypatch):
    """The disk spoils step 2 behind the manifest's back; step 1 may not go, whatever its name."""
    write = integrity.write

    def spoil(folder, **options):
        write(folder, **options)
        flip(pathlib.Path(folder))

    with Checkpointer(tmp_path, keep_last=1, keep_best=0) as checkpointer:
        checkpointer.save(make_state(1))
        checkpointer.wait()
        (tmp_path / "1").rename(tmp_path / sound)
        monkeypatch.setattr(integrity, "write", spoil)
        checkpointer.save(make_state(2))
        with pytest.raises(SaveError, match="the bytes of .* differ"):
            checkpointer.wait()
        with pytest.warns(RuntimeWarning, match="skipped"):
            restored = checkpointer.restore_latest(abstract(make_state(1)))
    assert bits(restored.state) == bits(make_state(1))


def test_one_that_lost_bytes_does_not_count_among_those_kept(tmp_path):
    with Checkpointer(tmp_path, keep_last=2, keep_best=0) as checkpointer:
        for step in (1, 2):
            checkpointer.save(make_state(step))
        checkpointer.wait()
        truncate(tmp_path / "2")
        with pytest.warns(RuntimeWarning, match="set aside"):
            checkpointer.save(make_state(3))
            checkpointer.wait()
        assert checkpointer.steps() == [1, 3]
    assert (tmp_path / "2.damaged").exists()


def test_a_sound_one_of_the_same_step_stays_until_the_new_one_is_complete(directory, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    with Checkpointer(directory) as checkpointer:
        monkeypatch.setattr(integrity, "write", fail)
        checkpointer.save(make_state(20, seed=5))
        with pytest.raises(SaveError, match=r"no space left on device.*steps \[10, 20\]"):
            checkpointer.wait()
        assert checkpointer.steps() == [10, 20]
        restored = checkpointer.restore_latest(abstract(make_state(20)))
        assert bits(restored.state) == bits(make_state(20))
        # As a kill leaves it: the new one unfinished, the old one beside it.
        (directory / "20").rename(directory / "20.replaced")
        (directory / "20").mkdir()
        (directory / "20" / "UNFINISHED").touch()
        with pytest.warns(RuntimeWarning, match="was killed"):
            restored = checkpointer.restore_latest(abstract(make_state(20)))
    assert bits(restored.state) == bits(make_state(20))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax' threads
def test_a_full_disk_fails_the_save_frees_its_room_and_the_next_one_works(tmp_path):
    """The kernel refuses the bytes: a limit on the size of files stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(make_state(1))
        checkpointer.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            with pytest.raises(SaveError, match=r"2 could not be saved.*steps \[1\]"):
                checkpointer.save(make_state(2, rows=4096))
                checkpointer.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        checkpointer.save(make_state(3))
        checkpointer.wait()
        assert checkpointer.steps() == [1, 3]
        assert checkpointer.restore_latest(abstract(make_state(3))).step == 3


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    """A day back with every look at it; and files that say so too."""
    now = [time.time()]

    def clock():
        now[0] -= 86_400
        return now[0]

    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(time, "time_ns", lambda: int(clock() * 1e9))
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(make_state(step))
            checkpointer.wait()
            for path in files(tmp_path / str(step)):
                os.utime(path, (clock(), clock()))
        assert checkpointer.steps() == [2, 3]
        restored = checkpointer.restore_latest(abstract(make_state(3)))
    assert bits(restored.state) == bits(make_state(3))


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
