"""Which recovery points are removed (a pure function with reasons), and removing them.

Add a rule in the plan. Only `prune` deletes, and it deletes exact file names only.
"""
