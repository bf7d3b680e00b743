"""Decide which recovery points are removed (a pure function that gives reasons), and remove them.

Add a rule in `plan`. Only `prune` deletes files, and only by their exact names.
"""
