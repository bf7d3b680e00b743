"""Proving what was captured: files, references, the live system, and committing a point.

Add a check here. It reads bytes and servers again; a result it cannot establish is unknown, never passed.
"""
