"""Measures capture and verification against the script of today, and the peak memory of a whole backup, on
data made here.

Ratios of one paired run, never asserted: machines are noisy. `make bench` runs all and writes
benchmarks/results/. Nothing of this is imported by the package or its tests.
"""
