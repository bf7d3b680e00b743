"""The settings, read from the environment and the `.env` file. Nothing else reads the environment.

Add a variable in `variables`. No default value may stand anywhere else. Imports `core` only.
"""
