"""Whether this installation can work: settings, servers, privileges, space, clock.

Add a precondition here. Examining one changes nothing. Imports `config` and `core` only.
"""
