"""Talking to PostgreSQL: connections, snapshots, client programs, and its refusals as our errors.

Add here what is asked of a database. What is done with the answer belongs to the five verbs above.
"""
