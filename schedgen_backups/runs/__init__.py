"""The only way from the command line to Dagster: jobs run in this process, and the container launcher.

Add a way to start or read a run here. Dagster is imported inside functions, so that commands without a run
start fast.
"""
