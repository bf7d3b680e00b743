"""Changes one expression of the pure parts of `core` at a time and finds out whether a unit test notices.

CONTRIBUTING says how to run it.
"""
