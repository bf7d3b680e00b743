"""What stands in for the application: its schema, plausible data, and a way to destroy both.

Add what the demo and the tests need to look like the real thing. Nothing that production runs may come here.
"""
