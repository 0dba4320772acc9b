"""Evaluations of cleaning, on real texts with planted faults and by independent measures."""
