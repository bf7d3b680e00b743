"""Restores of whole points, tables, objects and deleted rows, and the comparison afterwards.

Add code that writes captured data into a target. Every path that writes uses the same confirmation.
"""
