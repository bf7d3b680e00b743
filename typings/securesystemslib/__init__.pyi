# The parts of securesystemslib that we use: its own annotations leave dicts untyped.
