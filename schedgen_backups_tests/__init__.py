"""Tests against real servers, with injected faults.

Shared helpers live in `support` and are imported by their full name.
"""
