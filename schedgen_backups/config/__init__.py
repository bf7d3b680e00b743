"""The configuration; only this package reads the environment and the environment file.

Add a variable in `variables`, and read it in the part that it belongs to. Default values are defined nowhere
else. Imports only `core`.
"""
