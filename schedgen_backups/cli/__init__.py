"""The command line: one module per group of commands.

Add a command here. A command parses, calls, prints and sets the exit code; it makes no other decisions and
never imports Dagster. Only `runs` uses Dagster, when a command runs a job. Only `setup` and `demo` import
this package.
"""
