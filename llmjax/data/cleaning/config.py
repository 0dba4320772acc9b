"""Which steps clean text, in which order, and the settings of each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from llmjax.checks import nearest
from llmjax.data.cleaning.length import Length
from llmjax.data.cleaning.minhash import MinHash
from llmjax.data.cleaning.passages import Passages

# The order of FineWeb (Penedo et al. 2024), `--data.cleaning.steps=standard`.
STANDARD = ("length", "exact_duplicates", "near_duplicates")
# Steps that have nothing to set.
_PLAIN = ("exact_duplicates",)


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """Everything that decides what cleaning makes of a text.

    The fields below `part_bytes` are the settings of steps, under their names.

    Attributes:
        steps: names of steps, in the order in which documents pass them; `standard` stands for
          those of FineWeb, and none leaves text as it is.
        part_bytes: about how much input is cleaned at a time by one process, and lost when it is
          killed.
        length: bounds of a document's length.
        near_duplicates: which documents are so much alike that the first stands for all.
        repeated_passages: which passages are taken out because many documents have them.
    """

    steps: tuple[str, ...] = ()
    part_bytes: int = 1 << 26
    length: Length = Length()
    near_duplicates: MinHash = MinHash()
    repeated_passages: Passages = Passages()

    def __post_init__(self) -> None:
        known = [*(field.name for field in dataclasses.fields(self)[2:]), *_PLAIN]
        for name in self.names:
            if name not in known:
                near = nearest(name, known)
                raise ValueError(
                    f"CleaningConfig.steps has {name!r}: use {' or '.join(map(repr, near))}."
                    if near
                    else f"CleaningConfig.steps has {name!r}: use some of {', '.join(known)}."
                )
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"CleaningConfig.steps has a step twice: {', '.join(self.names)}.")
        if self.part_bytes < 1:
            raise ValueError(f"CleaningConfig.part_bytes is {self.part_bytes}: use 1 or more.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the steps, with those that `standard` stands for."""
        return tuple(
            name for given in self.steps for name in (STANDARD if given == "standard" else (given,))
        )

    def settings(self, name: str) -> Any:
        """The settings of the step of that name; None if it has none."""
        return getattr(self, name, None)

    def plain(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """What decides the outcome, as plain values: the steps in order, and their settings."""
        names = self.names if names is None else names
        found = {name: self.settings(name) for name in names}
        settings = {name: dataclasses.asdict(held) for name, held in found.items() if held}
        return {"steps": list(names), **settings}
