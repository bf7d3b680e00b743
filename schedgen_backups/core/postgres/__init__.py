"""Access to PostgreSQL: connections, snapshots, client programs, with its refusals as our errors.

Add queries and sessions here. The packages above use the answers.
"""
