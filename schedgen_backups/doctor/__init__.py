"""Whether this installation can work: settings, servers, privileges, space, clock.

Add a finding here. A finding looks and changes nothing. Imports `config` and `core` only.
"""
