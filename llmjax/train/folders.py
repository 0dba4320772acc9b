"""The folders of checkpoints: which are complete, which may be deleted, which are set aside.

    120              the checkpoint of step 120; unfinished while it contains a file UNFINISHED
    120.replaced     an older checkpoint of this step, until the new one is complete
    120.damaged      one that does not match its manifest; never deleted here
    120.unfinished   one interrupted by a kill; deleted when the next one is complete

Checkpoints are ordered by step, never by time.
"""

import warnings
from collections.abc import Collection

from etils import epath

from llmjax.train import integrity

UNFINISHED = "UNFINISHED"
_REPLACED = ".replaced"


class Folders:
    """The checkpoints in one folder; only one process changes them.

    Args:
        directory: the folder, which need not exist.
    """

    def __init__(self, directory: epath.Path) -> None:
        self.directory = directory

    def path(self, step: int) -> epath.Path:
        """The folder of a step."""
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """The steps with a complete (but not verified) checkpoint, in ascending order."""
        return sorted(
            int(path.name)
            for path in self._all()
            if path.name.isdecimal() and not is_unfinished(path)
        )

    def candidates(self) -> list[epath.Path]:
        """All folders that may hold a sound checkpoint, the newest first."""
        found = [path for path in self._all() if path.name.removesuffix(_REPLACED).isdecimal()]
        return sorted(found, key=lambda path: (step_of(path), path.name.isdecimal()), reverse=True)

    def begin(self, step: int) -> epath.Path:
        """Creates the folder of a step, unfinished; a complete one is kept until `finish`."""
        folder, replaced = self.path(step), self.directory / f"{step}{_REPLACED}"
        if folder.exists():
            if is_unfinished(folder):
                remove(folder)
            else:
                remove(replaced)
                folder.rename(replaced)
        folder.mkdir(parents=True)
        (folder / UNFINISHED).touch()
        return folder

    def finish(self, step: int) -> None:
        """Marks a step as complete."""
        (self.path(step) / UNFINISHED).unlink()
        remove(self.directory / f"{step}{_REPLACED}")

    def abandon(self, step: int) -> None:
        """Deletes an unfinished step, to free space, and restores the one it was to replace."""
        folder, replaced = self.path(step), self.directory / f"{step}{_REPLACED}"
        if folder.exists() and is_unfinished(folder):
            remove(folder)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)

    def prune(self, keep: Collection[int]) -> None:
        """Deletes all checkpoints except those to keep, and those set aside as unfinished."""
        for path in self._all():
            name, _, kind = path.name.partition(".")
            plain = not kind and name.isdecimal() and int(name) not in keep
            if plain or (name.isdecimal() and kind.startswith(("unfinished", "replaced"))):
                remove(path)

    def intact(self, steps: Collection[int]) -> list[int]:
        """The steps whose files match their manifest's names and sizes; sets the others aside."""
        found = []
        for step in sorted(steps):
            try:
                integrity.outline(self.path(step))
                found.append(step)
            except integrity.DamagedError:
                self.set_aside(self.path(step))
        return found

    def set_aside(self, path: epath.Path) -> None:
        """Renames a folder, so that it is neither used nor lost, with a warning."""
        kind = "unfinished" if is_unfinished(path) else "damaged"
        names = {other.name for other in self._all()}
        target = f"{step_of(path)}.{kind}"
        number = 2
        while target in names:
            target, number = f"{step_of(path)}.{kind}.{number}", number + 1
        path.rename(self.directory / target)
        message = f"{path} is {kind} and set aside: it is now {target}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _all(self) -> list[epath.Path]:
        return list(self.directory.iterdir()) if self.directory.exists() else []


def step_of(path: epath.Path) -> int:
    """The step of a folder, even if it was renamed."""
    return int(path.name.partition(".")[0])


def is_unfinished(folder: epath.Path) -> bool:
    """Whether a save of it was interrupted or is in progress."""
    return (folder / UNFINISHED).exists()


def remove(folder: epath.Path) -> None:
    """Deletes a checkpoint; if killed midway, the rest counts as unfinished."""
    if not folder.exists():
        return
    (folder / UNFINISHED).touch()
    for path in folder.iterdir():
        if path.name != UNFINISHED:
            path.rmtree() if path.is_dir() else path.unlink()
    folder.rmtree()
