"""Verify what was captured: files, references and the live system; commit a point.

Add a check here. Checks read bytes and servers again; a result that cannot be established is unknown, never
passed.
"""
