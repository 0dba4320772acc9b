"""Checkpoints that resume bitwise and are verified before they are used.

Orbax writes the arrays, in the background and from every process. It does not detect damage: most
flipped bits in its data files silently restore as wrong weights. So every checkpoint ends with a
manifest of sizes and digests, and restoring first verifies the files against it. A checkpoint is a
folder, named by its step:

    checkpoints/120/
        state/            the arrays, by Orbax
        data/0.json       state of process 0's batch iterator (0.bin if the state is bytes)
        checkpoint.json   step, metrics, state of hooks, and dtype and shape of each array
        manifest.json     size and digests of each file above
        UNFINISHED        exists until all of the above is complete

A folder with the last file was being written when its run was killed, and is ignored. Any other
folder that does not match its manifest is damaged. Restoring uses the newest sound checkpoint and
warns about those it skips; if all are damaged it raises, because a fresh start would hide the loss.
See `llmjax.train.folders` for what is set aside and what is deleted.
"""

import concurrent.futures
import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from llmjax.train import arrays, folders, integrity
from llmjax.train.loop import Pause
from llmjax.train.metrics import is_evaluation

State = TypeVar("State")

_BARRIER_MS = 30 * 60 * 1000


class SaveError(OSError):
    """A checkpoint could not be written; earlier ones are unchanged."""


class Remembering(Protocol):
    """A hook with state that belongs to the run, such as the best loss so far."""

    def get_state(self) -> Any:
        """The state, serializable as JSON."""
        ...

    def set_state(self, state: Any) -> None:
        """Restores a state of `get_state`."""
        ...


@dataclasses.dataclass(frozen=True)
class Restored(Generic[State]):
    """A restored checkpoint.

    Attributes:
        step: the steps completed when it was saved.
        state: the arrays, sharded like the abstract state.
        data: the result of the batches' `get_state`, or None. If several processes saved it,
            {"processes": [state of each]}, as processes may read other rows now.
        metrics: the metrics stored with it.
    """

    step: int
    state: State
    data: Any
    metrics: dict[str, float]


class Checkpointer:
    """Saves and restores checkpoints in one folder; call it with a `Pause` to save.

    Saving waits until the arrays have left the device, so that the next step may overwrite them,
    and does the rest in the background. Errors there are raised by the next save, `wait` or
    `close`. At most one save is in progress.

    Args:
        directory: the folder of checkpoints, created if missing; may be on shared storage (gs://…).
        keep_last: number of newest checkpoints to keep.
        keep_best: number of best checkpoints to keep as well, among those that were evaluated.
        best_metric: a name in the evaluation's metrics, as given to `save`.
        mode: whether the lowest ("min") or the highest ("max") is the best.
        remembering: hooks by name, whose state is saved and restored with the arrays.
    """

    def __init__(
        self,
        directory: str | epath.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str = "validation_loss",
        mode: Literal["min", "max"] = "min",
        remembering: Mapping[str, Remembering] | None = None,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last}: at least the newest checkpoint must stay")
        if keep_best < 0:
            raise ValueError(f"keep_best={keep_best}: must not be negative")
        if mode not in ("min", "max"):
            raise ValueError(f'mode={mode!r}: must be "min" or "max"')
        self.directory = epath.Path(directory).resolve()
        self.last_saved: int | None = None
        self._folders = folders.Folders(self.directory)
        self._keep_last, self._keep_best = keep_last, keep_best
        self._best_metric, self._sign = best_metric, 1 if mode == "min" else -1
        self._remembering = remembering or {}
        # Weights hardly compress, and zstd would compete with a CPU run for cores.
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, pause: Pause) -> None:
        """Saves the trained state, the position in the data and the metrics of this step.

        Frozen parameters are not saved, as they are unchanged at their source.
        """
        get_state = getattr(pause.batches, "get_state", None)
        state = dataclasses.replace(pause.state, frozen=None)
        self.save(state, data=get_state() if get_state else None, metrics=pause.metrics)

    def save(
        self, state: Any, *, data: Any = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves a state under its own step, replacing an existing checkpoint.

        Once it is complete, checkpoints that need not be kept are deleted, as are those of later
        steps, which belong to a run that has since been rewound to an earlier step.

        Args:
            state: a dataclass of arrays with an integer `step`, such as `TrainState`.
            data: the batches' state: bytes, or serializable as JSON.
            metrics: numbers to store with it.

        Raises:
            ValueError: `data` does not survive a round trip through JSON.
            SaveError: this save could not begin, or the previous one failed.
        """
        self.wait()
        fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
        step = int(fields["step"])
        suffix, encoded = _encode(data)
        folder = self._folders.path(step)
        try:
            if jax.process_index() == 0:
                self._folders.begin(step)
                self._describe(folder, fields, metrics or {})
            _barrier(f"checkpoint {step}")
            if data is not None:
                (folder / "data").mkdir(exist_ok=True)
                path = folder / "data" / f"{jax.process_index()}.{suffix}"
                integrity.write_durably(path, encoded)
            plain = jax.tree.map(arrays.without_key, fields)
            self._orbax.save(folder / "state", args=ocp.args.PyTreeSave(plain))
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = self._background.submit(self._finish, step)
        self.last_saved = step

    def wait(self) -> None:
        """Waits until the save in progress is complete; raises its error if it failed."""
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
        """The steps with a complete (but not verified) checkpoint, in ascending order."""
        return self._folders.steps()

    def restore_latest(self, abstract: State, *, set_aside: bool = False) -> Restored[State] | None:
        """Restores the newest sound checkpoint; None if no save was ever completed.

        Args:
            abstract: the result of `jax.eval_shape` for the state on the current mesh, or arrays,
                with the shardings to restore to. A whole state, or a dict with some of its fields,
                {"params": …}.
            set_aside: whether to rename skipped checkpoints. Only for the run that owns the folder,
                as a checkpoint that another run is saving is unfinished too.

        Raises:
            integrity.DamagedError: there are checkpoints, but all are damaged.
            ValueError: names, shapes or key types of the checkpoint differ from `abstract`.
        """
        return self._restore_first(self._folders.candidates(), abstract, set_aside)

    def restore_best(self, abstract: State) -> Restored[State] | None:
        """Restores the sound checkpoint with the best metric, or the newest if none has it."""
        best = [self._folders.path(step) for step in self.ranked(self.steps())]
        rest = [path for path in self._folders.candidates() if path not in best]
        return self._restore_first(best + rest, abstract, False)

    def restore(self, step: int, abstract: State) -> Restored[State]:
        """Restores the checkpoint of one step.

        Raises:
            FileNotFoundError: there is none.
            integrity.DamagedError: it is unfinished or damaged.
            ValueError: it does not match `abstract`.
        """
        folder = self._folders.path(step)
        if not folder.exists():
            raise FileNotFoundError(f"no checkpoint {folder}: there are {self.steps()}")
        if folders.is_unfinished(folder):
            raise integrity.DamagedError(f"{folder}: its run was killed while it was being saved")
        if problem := _damage(folder):
            raise integrity.DamagedError(problem)
        return self._read(folder, abstract)

    def _restore_first(
        self, order: Iterable[epath.Path], abstract: State, set_aside: bool
    ) -> Restored[State] | None:
        passed, damage, chosen = [], False, None
        for folder in order:
            if folders.is_unfinished(folder):
                _warn(f"skipped {folder}: its run was killed while it was being saved")
            elif problem := _damage(folder):
                _warn(f"skipped a damaged checkpoint: {problem}")
                damage = True
            else:
                chosen = folder
                break
            passed.append(folder)
        if chosen is None and damage:
            raise integrity.DamagedError(
                f"no checkpoint in {self.directory} is sound: see the warnings"
            )
        restored = None if chosen is None else self._read(chosen, abstract)
        if set_aside:
            _barrier("restored")  # a folder that is renamed must not be looked at any more
            for folder in passed if jax.process_index() == 0 else ():
                self._folders.set_aside(folder)
        return restored

    def _read(self, folder: epath.Path, abstract: State) -> Restored[State]:
        about = json.loads((folder / "checkpoint.json").read_text())
        whole = dataclasses.is_dataclass(abstract)
        fields: dict[str, Any] = (
            {f.name: getattr(abstract, f.name) for f in dataclasses.fields(abstract)}  # type: ignore[arg-type]
            if whole
            else dict(abstract)  # type: ignore[call-overload]
        )
        arrays.check_fit(folder, about["arrays"], arrays.describe(fields), whole)
        wanted = jax.tree.map(arrays.placed, fields)
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        found = self._orbax.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(wanted, arguments, partial_restore=not whole),
        )
        fields = jax.tree.map(arrays.with_key, fields, found)
        state: Any = dataclasses.replace(abstract, **fields) if whole else fields  # type: ignore[type-var]
        for name, hook in self._remembering.items():
            if name in about["hooks"]:
                hook.set_state(about["hooks"][name])
        return Restored(about["step"], state, _decode(folder / "data"), about["metrics"])

    def _describe(
        self, folder: epath.Path, fields: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Writes checkpoint.json."""
        about = {
            "step": int(fields["step"]),
            "metrics": {name: float(value) for name, value in metrics.items()},
            "hooks": {name: hook.get_state() for name, hook in self._remembering.items()},
            "arrays": arrays.describe(fields),
        }
        content = json.dumps(about, indent=1).encode()
        integrity.write_durably(folder / "checkpoint.json", content)

    def ranked(self, steps: Sequence[int]) -> list[int]:
        """The evaluated steps that have the metric, best first, later ones first among equals."""
        found = {}
        for step in steps:
            try:
                about = json.loads((self._folders.path(step) / "checkpoint.json").read_text())
                value = self._sign * float(about["metrics"][self._best_metric])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not evaluated, or damaged, which restoring reports
            if is_evaluation(about["metrics"]) and math.isfinite(value):
                found[step] = value
        return sorted(found, key=lambda step: (found[step], -step))

    def _finish(self, step: int) -> None:
        """In the background: waits for the arrays, writes the manifest, deletes old checkpoints."""
        folder = self._folders.path(step)
        try:
            self._orbax.wait_until_finished()
            integrity.write(
                folder,
                ignore={folders.UNFINISHED},
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                barrier=lambda name: _barrier(f"{name} {step}"),
            )
            if jax.process_index() == 0:
                self._folders.finish(step)
                self._prune(step)
        except Exception as error:
            raise self._failed(step, error) from error

    def _prune(self, step: int) -> None:
        """Deletes checkpoints that need not be kept, after this step is complete."""
        past = self._folders.intact([other for other in self.steps() if other <= step])
        keep = {*past[-self._keep_last :], *self.ranked(past)[: self._keep_best]}
        if keep == {step} and len(self._folders.candidates()) > 1:
            # Before deleting the others, make sure that the new checkpoint reads back.
            integrity.verify(self._folders.path(step))
        self._folders.prune(keep)

    def _failed(self, step: int, error: Exception) -> SaveError:
        """The error to raise; deletes the incomplete step, as the disk may be full."""
        folder = self._folders.path(step)
        try:
            if jax.process_index() == 0:
                self._folders.abandon(step)
        except OSError as again:
            _warn(f"{folder} is unfinished and could not be deleted: {again}")
        left = self.steps()
        return SaveError(
            f"{folder} could not be saved: {error}. The checkpoints of steps {left} are unchanged; "
            "free disk space or repair the storage, then resume"
        )


def _damage(folder: epath.Path) -> str | None:
    """The damage of a folder, or None; each process verifies a share, and all agree."""
    problem = None
    try:
        index, count = jax.process_index(), jax.process_count()
        integrity.verify(folder, process_index=index, process_count=count)
    except (integrity.DamagedError, OSError) as error:
        problem = str(error)
    if jax.process_count() == 1:
        return problem
    found = multihost_utils.process_allgather(np.int32(problem is not None))
    bad = np.flatnonzero(found).tolist()
    return problem or (f"{folder}: process {bad[0]} found damage" if bad else None)


def _encode(data: Any) -> tuple[str, bytes]:
    if isinstance(data, bytes):
        return "bin", data
    text = json.dumps(data)
    if json.loads(text) != _listed(data):
        raise ValueError(f"the batches' state does not survive JSON: {text[:200]}")
    return "json", text.encode()


def _listed(data: Any) -> Any:
    """The data with tuples as lists: the only harmless change in a round trip through JSON."""
    if isinstance(data, Mapping):
        return {name: _listed(value) for name, value in data.items()}
    return [_listed(value) for value in data] if isinstance(data, list | tuple) else data


def _decode(folder: epath.Path) -> Any:
    """The state of the process that saved it, or of all processes."""
    if not folder.exists():
        return None
    paths = sorted(folder.iterdir(), key=lambda path: int(path.stem))
    if len(paths) == 1:
        return _decode_one(paths[0])
    with concurrent.futures.ThreadPoolExecutor(32) as threads:
        return {"processes": list(threads.map(_decode_one, paths))}


def _decode_one(path: epath.Path) -> Any:
    return path.read_bytes() if path.suffix == ".bin" else json.loads(path.read_text())


def _barrier(name: str) -> None:
    """A barrier on the host: devices may be busy, and need the same order of programs."""
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=f"llmjax {name}", timeout_ms=_BARRIER_MS)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
