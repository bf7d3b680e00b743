"""A substitute for the application: its schema, plausible data, and a way to destroy both.

For the demo and the tests only; production code never lives here.
"""
