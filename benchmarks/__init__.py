"""Benchmarks on generated data: capture and verification against the old script, and peak memory of a backup.

The results are ratios of one paired run and never asserted: machines are noisy. `make bench` runs all and
writes benchmarks/results/. Neither the package nor its tests import this.
"""
