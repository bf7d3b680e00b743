"""The configuration, read from the environment and from the environment file. Nothing else reads either.

Add a variable in `variables`, and read it in the part that it belongs to. No default value stands anywhere
else. Imports `core` only.
"""
