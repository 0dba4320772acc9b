"""Declares a quality metric's title, format and meaning at its field.

Reports, terminal tables and JSON files read them from there.
"""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Metric:
    """The description of a metric.

    Attributes:
        name: the field's name.
        title: name for readers.
        form: format of the number.
        meaning: what is counted.
        better: which direction is better for training, if that is clear.
    """

    name: str
    title: str
    form: str
    meaning: str
    better: Literal["", "less", "more"] = ""

    def written(self, value: float | None) -> str:
        """The formatted number; a dash for None."""
        return "–" if value is None else format(value, self.form)


def metric(title: str, form: str, meaning: str, better: Literal["", "less", "more"] = "") -> Any:
    """A dataclass field with the description of its metric."""
    about = {"title": title, "form": form, "meaning": meaning, "better": better}
    return dataclasses.field(metadata={"metric": about})


def of(kind: Any) -> tuple[Metric, ...]:
    """The metrics of a dataclass, in field order."""
    return tuple(
        Metric(field.name, **field.metadata["metric"])
        for field in dataclasses.fields(kind)
        if "metric" in field.metadata
    )
