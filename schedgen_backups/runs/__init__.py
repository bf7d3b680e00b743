"""The command line's only access to Dagster: jobs that run in this process; and the container launcher.

Add a way to start or read a run here. Dagster is imported inside functions, so that commands without a run
start fast.
"""
