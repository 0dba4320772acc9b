"""Time and money by hand, chips by what they call themselves, prices with their dates."""

import datetime
import math

import pytest

from llmjax import planning
from llmjax.planning import cost


def test_gpt3_on_a_thousand_v100() -> None:
    """The textbook's claim, 34 days, needs 85 % of the peak, which nobody reaches."""
    cluster = cost.Cluster(planning.chip("v100"), 1000, utilization=0.3)
    needed = cluster.needed_utilization(3.14e23, 34 * 86400)
    assert needed == pytest.approx(0.855, abs=0.001)
    assert needed > cost.GOOD_UTILIZATION
    assert cluster.seconds(3.14e23) / 86400 == pytest.approx(34 * 0.855 / 0.3, rel=0.001)


def test_time_money_and_flops_are_one() -> None:
    cluster = cost.Cluster(planning.chip("h100"), 8, utilization=0.5, dollars=2.0)
    flops = 8 * 0.5 * 989e12 * 3600  # an hour
    assert cluster.seconds(flops) == pytest.approx(3600)
    assert cluster.chip_hours(flops) == pytest.approx(8)
    assert cluster.cost(flops) == pytest.approx(16)
    assert cluster.flops_in(1) == pytest.approx(flops)
    assert cluster.flops_for(16) == pytest.approx(flops)
    free = cost.Cluster(planning.chip("h100"))
    assert free.cost(flops) is None
    with pytest.raises(ValueError, match="no price is known for h100"):
        free.flops_for(1)


def test_prices_are_of_known_chips_and_dated() -> None:
    names = {chip.name for chip in planning.CHIPS}
    table = planning.prices()
    assert {"v5e", "v5p", "v6e", "a100", "h100", "h200"} <= set(table) <= names
    for price in table.values():
        assert price.dollars > 0
        assert price.offer
        assert datetime.datetime.strptime(price.date, "%Y-%m")
        assert price.source.startswith("https://")
    # The textbook's figure for eight A100 of 40 GB is about 32 dollars; those of 80 GB cost more.
    assert 32 < 8 * table["a100"].dollars < 45


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla V100-SXM2-32GB", "v100"),
    ],
)
def test_a_device_says_which_chip_it_is(kind: str, name: str) -> None:
    chip = planning.chip_of(kind)
    assert chip is planning.chip(name)
    assert chip.platform == ("tpu" if kind.startswith("TPU") else "gpu")


def test_links_send_half_of_what_data_sheets_call_bidirectional() -> None:
    """In GB/s: the pages of Cloud TPU, and NVIDIA's of NVLink."""
    both_ways = {"v5e": 400, "v5p": 1200, "v6e": 800, "tpu7x": 1200}
    both_ways |= {"v100": 300, "a100": 600, "h100": 900, "h200": 900, "b200": 1800}
    both_ways |= {"h100-pcie": 600, "h100-nvl": 600}
    for name, gigabytes in both_ways.items():
        assert 2 * planning.chip(name).network == gigabytes * 1e9


def test_chips_are_whole() -> None:
    assert planning.chip_of("abacus") is None
    with pytest.raises(ValueError, match="h10: no chip of that name; there are v4, v5e"):
        planning.chip("h10")
    for chip in planning.CHIPS:
        # Between the machine balance of a V100 and that of today's: operations to a byte.
        assert 100 < chip.flops / chip.bandwidth < 700
        assert 16 * 2**30 <= chip.memory <= 192 * 2**30


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "chips=0: must be at least 1"),
        ({"utilization": 0.0}, r"utilization=0.0: must be in \(0, 1\]"),
        ({"utilization": 40.0}, "utilization=40.0"),
        ({"dollars": 0.0}, "price=0.0: dollars per chip-hour must be above 0"),
    ],
)
def test_what_cannot_be_is_said(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cost.Cluster(planning.chip("v5e"), **fields)
    with pytest.raises(ValueError, match="seconds=inf"):
        cost.Cluster(planning.chip("v5e")).needed_utilization(1e20, math.inf)
