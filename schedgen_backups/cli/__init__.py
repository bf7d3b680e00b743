"""The command line: one module per group of commands.

Add a command here. A command parses, calls, prints and sets the exit code; it decides nothing and never
imports Dagster. Only `runs` reaches Dagster, when a command runs a job. Nothing but `setup` and `demo`
imports this package.
"""
