"""Time and money of training.

Seconds follow from FLOPs, the number of chips, their peak and the utilisation (MFU). A claim that
states the other four implies a utilisation. The textbook's claim for GPT-3 (3.14e23 FLOPs on 1000
V100 in 34 days) implies 86 %; large runs reach 30 to 60 %.
"""

import csv
import dataclasses
import functools
import math
import pathlib

from llmjax.planning.hardware import Chip

PRICES = pathlib.Path(__file__).with_name("prices.csv")
GOOD_UTILIZATION = 0.6  # large runs reach 0.3 to 0.6 of the data sheet's rate

HOUR, DAY = 3600.0, 86400.0


@dataclasses.dataclass(frozen=True)
class Price:
    """The list price of an hour on a chip; contract prices differ.

    Attributes:
        chip: its short name.
        dollars: US dollars per chip-hour.
        offer: provider, kind of offer and region.
        date: year and month of the price list.
        source: URL of the price list.
    """

    chip: str
    dollars: float
    offer: str
    date: str
    source: str


@functools.cache
def prices() -> dict[str, Price]:
    """Reads `prices.csv` into a table by chip name."""
    with PRICES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["chip"]: Price(
            row["chip"], float(row["dollars"]), row["offer"], row["date"], row["source"]
        )
        for row in rows
    }


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A number of equal chips and the utilisation that a run reaches on them.

    Attributes:
        chip: the kind of chip.
        count: number of chips.
        utilization: model FLOPs over the data sheet's peak (MFU), in (0, 1].
        dollars: per chip-hour; None if no price is known.
    """

    chip: Chip
    count: int = 1
    utilization: float = 0.4
    dollars: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"chips={self.count}: must be at least 1")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"utilization={self.utilization}: must be in (0, 1]")
        if self.dollars is not None and not self.dollars > 0:
            raise ValueError(f"price={self.dollars}: dollars per chip-hour must be above 0")

    def chip_hours(self, flops: float) -> float:
        """Chip-hours for a number of FLOPs."""
        return flops / (self.chip.flops * self.utilization) / HOUR

    def seconds(self, flops: float) -> float:
        """Seconds for a number of FLOPs on all chips."""
        return self.chip_hours(flops) * HOUR / self.count

    def cost(self, flops: float) -> float | None:
        """Dollars for a number of FLOPs; None if no price is known."""
        return None if self.dollars is None else self.chip_hours(flops) * self.dollars

    def flops_in(self, hours: float) -> float:
        """FLOPs that all chips do in a number of hours."""
        return hours * HOUR * self.chip.flops * self.utilization * self.count

    def flops_for(self, dollars: float) -> float:
        """FLOPs that a number of dollars buys.

        Raises:
            ValueError: no price is known.
        """
        if self.dollars is None:
            raise ValueError(f"no price is known for {self.chip.name}: give one")
        return dollars / self.dollars * HOUR * self.chip.flops * self.utilization

    def needed_utilization(self, flops: float, seconds: float) -> float:
        """The utilisation (MFU) that a claim implies; above 1 it is impossible."""
        if not (seconds > 0 and math.isfinite(seconds)):
            raise ValueError(f"seconds={seconds}: must be above 0, and finite")
        return flops / (self.chip.flops * self.count * seconds)
