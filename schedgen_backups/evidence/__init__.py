"""What a configured site shows to outsiders: metrics, and the report of a month.

Which settings belong to them is decided here; `core` computes them. Imports only `config` and `core`.
"""
