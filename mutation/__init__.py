"""Mutation tests: change one expression of the pure parts of `core` at a time; does a unit test notice it?

CONTRIBUTING.md describes how to run it.
"""
