"""Threads and their limits: pools, prefetch, memory and rate limits, task graphs.

Add here what bounds or orders work. It knows nothing about backups.
"""
