"""Judges of cleaning: real texts with planted faults, and what independent measures say of them."""
