"""The comparison of continuous with plain batches runs, and both ways write the same texts."""

from tools import bench_rollouts


def test_both_ways_are_timed(capsys):
    options = {"workload": "W0-decode", "prompts": 5, "slots": 2, "mean": 8, "longest": 16}
    bench_rollouts.main(["--rounds=1", *(f"--{name}={value}" for name, value in options.items())])
    first, *ways = capsys.readouterr().out.splitlines()
    assert first.startswith("5 texts of ")
    assert [way.split("  ")[0] for way in ways] == ["plain batches", "continuous"]
    assert all(float(way.split()[-1]) > 0 for way in ways)
