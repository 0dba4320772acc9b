"""What a number of quality is called, how it is written and what it means: said once, at its field.

Reports, terminal tables and machines read it from there.
"""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that is measured.

    Attributes:
        name: the field's.
        title: what it is called.
        form: a format.
        meaning: what is counted, of what.
        better: which way is better for training, as far as that can be said.
    """

    name: str
    title: str
    form: str
    meaning: str
    better: Literal["", "less", "more"] = ""

    def written(self, value: float | None) -> str:
        """The number as a reader wants it; a dash where there is none."""
        return "–" if value is None else format(value, self.form)


def metric(title: str, form: str, meaning: str, better: Literal["", "less", "more"] = "") -> Any:
    """A field with what is to be known of its number."""
    about = {"title": title, "form": form, "meaning": meaning, "better": better}
    return dataclasses.field(metadata={"metric": about})


def of(kind: Any) -> tuple[Metric, ...]:
    """The metrics among the fields of a dataclass, in order."""
    return tuple(
        Metric(field.name, **field.metadata["metric"])
        for field in dataclasses.fields(kind)
        if "metric" in field.metadata
    )
