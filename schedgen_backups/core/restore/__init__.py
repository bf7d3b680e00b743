"""Restoring: whole points, tables, objects, deleted rows, and the comparison afterwards.

Add here what writes captured data into a target. Every writing branch has the same confirmation gate.
"""
