"""Threads and their limits: pools, prefetch, memory and rate limits, task graphs.

Add here what limits or orders work. Nothing here knows about backups.
"""
