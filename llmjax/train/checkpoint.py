"""Checkpoints that resume bitwise, and are never trusted unread.

Orbax writes the arrays, in the background and from every process. What it does not do is notice
damage: most flipped bits in its data files restore as wrong weights without a word. So every
checkpoint ends with a manifest of sizes and SHA-256 digests, and restoring begins with reading it
against the files. One checkpoint is a folder, named by its step:

    checkpoints/120/
        state/            the arrays, by Orbax
        data/0.json       where process 0's batches stand (0.bin when the iterator gives bytes)
        checkpoint.json   step, metrics, and name, dtype and shape of each array
        manifest.json     size and digest of each file above
        UNFINISHED        there until all of the above is

A folder with the last file was being written when its run was killed: it counts for nothing. Any
other folder that does not agree with its manifest is damaged. Restoring goes back past both to the
newest sound checkpoint and says what it passed over; if all are damaged it raises, because a fresh
start would hide a loss.
"""

import concurrent.futures
import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from llmjax.train import integrity
from llmjax.train.loop import Pause

State = TypeVar("State")

_UNFINISHED = "UNFINISHED"


@dataclasses.dataclass(frozen=True)
class Restored(Generic[State]):
    """A checkpoint read back.

    Attributes:
        step: the steps completed when it was saved.
        state: the arrays, placed as the abstract state asked.
        data: what the batches' `get_state` had returned in this process, or None.
        metrics: the metrics stored with it.
    """

    step: int
    state: State
    data: Any
    metrics: dict[str, float]


class Checkpointer:
    """Saves and restores checkpoints in one folder; call it with a `Pause` to save there.

    Saving waits until the arrays have left the device and does the rest in the background, so the
    next step may overwrite them. An error there is raised by the next save, `wait` or `close`. At
    most one save is under way.

    Args:
        directory: the folder of checkpoints, made when missing; may be on shared storage (gs://…).
        keep_last: how many of the newest checkpoints stay.
        keep_best: how many of the best stay beside them, among those with `best_metric`.
        best_metric: the name in the metrics given to `save`.
        mode: whether the lowest ("min") or the highest ("max") is the best.
    """

    def __init__(
        self,
        directory: str | epath.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str = "validation_loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last}: at least the newest checkpoint must stay")
        if keep_best < 0:
            raise ValueError(f"keep_best={keep_best}: a number of checkpoints, or 0")
        if mode not in ("min", "max"):
            raise ValueError(f'mode={mode!r}: "min" or "max"')
        self.directory = epath.Path(directory).resolve()
        self.last_saved: int | None = None
        self._keep_last, self._keep_best = keep_last, keep_best
        self._best_metric, self._sign = best_metric, 1 if mode == "min" else -1
        # Weights hardly compress, and zstd would take the cores from a CPU run.
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, pause: Pause) -> None:
        """Saves the state, the place in the data and the metrics of this step."""
        get_state = getattr(pause.batches, "get_state", None)
        self.save(pause.state, data=get_state() if get_state else None, metrics=pause.metrics)

    def save(
        self, state: Any, *, data: Any = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves a state under its own step, replacing what is there.

        When it is complete, checkpoints that need not be kept are deleted, and so are those of
        later steps: they belong to a run that was since taken back to an earlier step.

        Args:
            state: a dataclass of arrays with an integer `step`, such as `TrainState`.
            data: the batches' state: bytes or what JSON can hold.
            metrics: numbers to store with it.

        Raises:
            ValueError: `data` would not come back from JSON as it is.
            Exception: the previous save failed.
        """
        self.wait()
        fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
        step = int(fields["step"])
        suffix, encoded = _encode(data)
        folder = self.directory / str(step)
        if jax.process_index() == 0:
            _remove(folder)
            folder.mkdir(parents=True)
            (folder / _UNFINISHED).touch()
            numbers = {name: float(value) for name, value in (metrics or {}).items()}
            about = {"step": step, "metrics": numbers, "arrays": _describe(fields)}
            (folder / "checkpoint.json").write_text(json.dumps(about, indent=1))
        _barrier(f"checkpoint {step}")
        if data is not None:
            (folder / "data").mkdir(exist_ok=True)
            (folder / "data" / f"{jax.process_index()}.{suffix}").write_bytes(encoded)
        arrays = jax.tree.map(_without_key, fields)
        self._orbax.save(folder / "state", args=ocp.args.PyTreeSave(arrays))
        self._pending = self._background.submit(self._finish, step)
        self.last_saved = step

    def wait(self) -> None:
        """Returns when the save under way is complete; raises what made it fail."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits, and ends the background work."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._orbax.close()

    def steps(self) -> list[int]:
        """The steps that have a completed checkpoint, in ascending order; none is verified."""
        return [step for step in self._folders() if not self._unfinished(step)]

    def restore_latest(self, abstract: State) -> Restored[State] | None:
        """The newest sound checkpoint, or None when no save was ever completed.

        Args:
            abstract: what `jax.eval_shape` gives for the state on the current mesh, or arrays; the
                shardings to restore into are theirs. A whole state, or a dict with some of its
                fields, {"params": …}.

        Raises:
            integrity.DamagedError: there are checkpoints, and every one is damaged.
            ValueError: the checkpoint does not fit `abstract`: other names, shapes or key types.
        """
        return self._restore_first(self._folders()[::-1], abstract)

    def restore_best(self, abstract: State) -> Restored[State] | None:
        """The sound checkpoint with the best metric; the newest when none has the metric."""
        best = self._ranked(self.steps())
        rest = [step for step in self._folders()[::-1] if step not in best]
        return self._restore_first(best + rest, abstract)

    def restore(self, step: int, abstract: State) -> Restored[State]:
        """The checkpoint of one step.

        Raises:
            FileNotFoundError: there is none.
            integrity.DamagedError: it is unfinished or damaged.
            ValueError: it does not fit `abstract`.
        """
        folder = self.directory / str(step)
        if not folder.exists():
            raise FileNotFoundError(f"no checkpoint {folder}: there are {self.steps()}")
        if self._unfinished(step):
            raise integrity.DamagedError(f"{folder}: its run was killed while it was being saved")
        integrity.verify(folder)
        return self._read(folder, abstract)

    def _restore_first(self, order: Iterable[int], abstract: State) -> Restored[State] | None:
        chosen, damage = self._agree(*self._first_sound(order))
        if damage:
            raise integrity.DamagedError(
                f"no checkpoint in {self.directory} is sound: see the warnings"
            )
        return None if chosen is None else self._read(self.directory / str(chosen), abstract)

    def _first_sound(self, order: Iterable[int]) -> tuple[int | None, bool]:
        """The first sound step, or None and whether one was damaged, all seen by process 0."""
        damage = False
        for step in order if jax.process_index() == 0 else ():
            folder = self.directory / str(step)
            if self._unfinished(step):
                _warn(f"passed over {folder}: its run was killed while it was being saved")
                continue
            try:
                integrity.verify(folder)
                return step, False
            except integrity.DamagedError as error:
                _warn(f"passed over a damaged checkpoint: {error}")
                damage = True
        return None, damage

    def _agree(self, step: int | None, damage: bool) -> tuple[int | None, bool]:
        """Process 0's choice, in every process."""
        if jax.process_count() == 1:
            return step, damage
        choice = -1 if step is None else step
        choice, damaged = multihost_utils.broadcast_one_to_all((choice, int(damage)))
        return (None if choice < 0 else int(choice)), bool(damaged)

    def _read(self, folder: epath.Path, abstract: State) -> Restored[State]:
        about = json.loads((folder / "checkpoint.json").read_text())
        whole = dataclasses.is_dataclass(abstract)
        fields: dict[str, Any] = (
            {f.name: getattr(abstract, f.name) for f in dataclasses.fields(abstract)}  # type: ignore[arg-type]
            if whole
            else dict(abstract)  # type: ignore[call-overload]
        )
        _check_fit(folder, about["arrays"], _describe(fields), whole)
        wanted = jax.tree.map(_placed, fields)
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        arrays = self._orbax.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(wanted, arguments, partial_restore=not whole),
        )
        fields = jax.tree.map(_with_key, fields, arrays)
        state: Any = dataclasses.replace(abstract, **fields) if whole else fields  # type: ignore[type-var]
        return Restored(about["step"], state, _decode(folder / "data"), about["metrics"])

    def _folders(self) -> list[int]:
        if not self.directory.exists():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def _unfinished(self, step: int) -> bool:
        return (self.directory / str(step) / _UNFINISHED).exists()

    def _ranked(self, steps: Sequence[int]) -> list[int]:
        """Those steps that have the metric, best first, the later first among equals."""
        found = {}
        for step in steps:
            try:
                about = json.loads((self.directory / str(step) / "checkpoint.json").read_text())
                value = self._sign * float(about["metrics"][self._best_metric])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not evaluated, or damaged, which restoring reports
            if math.isfinite(value):
                found[step] = value
        return sorted(found, key=lambda step: (found[step], -step))

    def _finish(self, step: int) -> None:
        """In the background: waits for the arrays, writes the manifest, deletes what is old."""
        self._orbax.wait_until_finished()
        if jax.process_index() != 0:
            return
        folder = self.directory / str(step)
        integrity.write(folder, ignore={_UNFINISHED})
        (folder / _UNFINISHED).unlink()
        past = [other for other in self.steps() if other <= step]
        keep = {*past[-self._keep_last :], *self._ranked(past)[: self._keep_best]}
        for other in self._folders():
            if other not in keep:
                _remove(self.directory / str(other))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf: Any) -> Any:
    """A typed PRNG key as its integers; Orbax stores plain arrays."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """The plain array to read, on real devices: those of the current mesh for abstract meshes."""
    sharding = getattr(leaf, "sharding", None)
    current = jax.sharding.get_mesh()
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        sharding = NamedSharding(current, sharding.spec)
    elif sharding is None and not current.empty:
        sharding = NamedSharding(current, PartitionSpec())
    elif sharding is None:
        sharding = SingleDeviceSharding(jax.devices()[0])
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _with_key(abstract: Any, leaf: jax.Array) -> jax.Array:
    if not _is_key(abstract):
        return leaf
    generators: list[Any] = []  # `key_impl` takes a traced key but not an abstract one
    jax.eval_shape(lambda key: generators.append(jax.random.key_impl(key)), abstract)
    return jax.random.wrap_key_data(leaf, impl=generators[0])


def _describe(fields: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Name → [dtype, shape] of every array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(fields)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [str(leaf.dtype), list(leaf.shape)]
        for path, leaf in leaves
    }


def _check_fit(folder: epath.Path, has: dict, wants: dict, whole: bool) -> None:
    """Raises unless the saved arrays are the wanted ones; number types may differ (a cast)."""
    problems = [f"{name} is missing" for name in wants if name not in has]
    if whole:
        problems += [f"{name} is not wanted" for name in has if name not in wants]
    for name in wants.keys() & has.keys():
        (dtype, shape), (wanted_dtype, wanted_shape) = has[name], wants[name]
        keys = dtype.startswith("key<") or wanted_dtype.startswith("key<")
        if shape != wanted_shape or (keys and dtype != wanted_dtype):
            problems.append(f"{name} is {dtype}{shape} and should be {wanted_dtype}{wanted_shape}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(
            f"{folder} is of another model or optimizer: {'; '.join(problems[:5])}{more}. "
            "Run it with the configuration that made it, or use a new run folder"
        )


def _encode(data: Any) -> tuple[str, bytes]:
    if isinstance(data, bytes):
        return "bin", data
    text = json.dumps(data)
    if json.loads(text) != _listed(data):
        raise ValueError(f"the batches' state changes on its way through JSON: {text[:200]}")
    return "json", text.encode()


def _listed(data: Any) -> Any:
    """The data with lists for tuples: the one change on the way through JSON that does no harm."""
    if isinstance(data, Mapping):
        return {name: _listed(value) for name, value in data.items()}
    return [_listed(value) for value in data] if isinstance(data, list | tuple) else data


def _decode(folder: epath.Path) -> Any:
    process = jax.process_index()
    if (path := folder / f"{process}.bin").exists():
        return path.read_bytes()
    path = folder / f"{process}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _remove(folder: epath.Path) -> None:
    """Deletes a checkpoint so that, killed midway, what is left counts as unfinished."""
    if not folder.exists():
        return
    (folder / _UNFINISHED).touch()
    for path in folder.iterdir():
        if path.name != _UNFINISHED:
            path.rmtree() if path.is_dir() else path.unlink()
    folder.rmtree()


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
