"""The parts of tools/bench.py: workloads, each engine's programs, and the measuring session."""
