"""Real servers, faults injected on purpose, and the tests of each part of the package.

Shared helpers live here and are imported by their full name; tests live in the folders.
"""
