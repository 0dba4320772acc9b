"""A program's cost is that of its instructions, as often as they run."""

import pathlib

import pytest

from llmjax.planning import ProgramCost, program_cost

# As libtpu prints them, shortened: 7 times (100 cycles and, 3 times, 10 cycles and a kernel), then
# a branch of 5 cycles or one of 6.
PROGRAM = pathlib.Path(__file__).with_name("program.hlo").read_text()


def test_loops_count_as_often_as_they_run():
    assert program_cost(PROGRAM) == ProgramCost(
        cycles=7 * (100 + 3 * 10) + 6,
        kernel_calls=7 * 3,
        kernel_flops=7 * 3 * 1000,
        kernel_bytes=7 * 3 * 64,
    )


@pytest.mark.parametrize(
    ("change", "cycles"),
    [
        (("index=0\n  %limit.2", "index=1\n  %limit.2"), 7 * (100 + 10) + 6),
        (("%count.2, %limit.2), direction=LT", "%count.2, %limit.2), direction=NE"), 7 * 110 + 6),
        (("constant(14)", "parameter(1)"), 100 + 3 * 10 + 6),
    ],
)
def test_loops_that_do_not_count_are_told(change, cycles):
    assert change[0] in PROGRAM
    cost = program_cost(PROGRAM.replace(*change))
    assert cost.cycles == cycles
    assert cost.uncounted_loops in (1, 7)  # the inner one runs seven times
