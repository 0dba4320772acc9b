"""Time and money of training."""

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
    """What an hour of a chip was listed at; what is paid is a matter of contract.

    Attributes:
        chip: its short name.
        dollars: US dollars an hour, of one chip.
        offer: whose, of what kind, where.
        date: of the list, year and month.
        source: where the list is.
    """

    chip: str
    dollars: float
    offer: str
    date: str
    source: str


@functools.cache
def prices() -> dict[str, Price]:
    """The table `prices.csv`, by chip."""
    with PRICES.open(encoding="utf-8", newline="") as file:
        rows = [Price(**row | {"dollars": float(row["dollars"])}) for row in csv.DictReader(file)]
    return {price.chip: price for price in rows}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Chips of a kind, and how much of their rate a run gets.

    Attributes:
        chip: the kind.
        count: of them.
        utilization: model FLOPs over what the data sheet promises (MFU), in (0, 1].
        dollars: for an hour of a chip; None where no price is known.
    """

    chip: Chip
    count: int = 1
    utilization: float = 0.4
    dollars: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"chips={self.count}: must be at least 1")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"utilization={self.utilization}: a share of the peak is in (0, 1]")
        if self.dollars is not None and not self.dollars > 0:
            raise ValueError(f"price={self.dollars}: dollars an hour are above 0")

    def chip_hours(self, flops: float) -> float:
        """Hours of one chip for so many FLOPs."""
        return flops / (self.chip.flops * self.utilization) / HOUR

    def seconds(self, flops: float) -> float:
        """Of all chips together."""
        return self.chip_hours(flops) * HOUR / self.count

    def cost(self, flops: float) -> float | None:
        """Dollars; None where no price is known."""
        return None if self.dollars is None else self.chip_hours(flops) * self.dollars

    def flops_in(self, hours: float) -> float:
        """FLOPs in so many hours of all chips."""
        return hours * HOUR * self.chip.flops * self.utilization * self.count

    def flops_for(self, dollars: float) -> float:
        """FLOPs for so much money.

        Raises:
            ValueError: no price is known.
        """
        if self.dollars is None:
            raise ValueError(f"no price is known for {self.chip.name}: give one")
        return dollars / self.dollars * HOUR * self.chip.flops * self.utilization

    def needed_utilization(self, flops: float, seconds: float) -> float:
        """Of the peak, to do so many FLOPs in so much time; above 1 it cannot be done."""
        if not (seconds > 0 and math.isfinite(seconds)):
            raise ValueError(f"seconds={seconds}: must be above 0, and finite")
        return flops / (self.chip.flops * self.count * seconds)
