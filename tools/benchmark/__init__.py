"""The parts of tools/bench.py: workloads, the programs of each engine, and how they take turns."""
