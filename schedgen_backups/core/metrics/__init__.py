"""Metrics of a site, computed from what is on disk, so that a backup taken in any way counts.

`families` describes every metric, `samples` computes their values. How they are served or written is not
decided here.
"""
