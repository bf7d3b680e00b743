"""Checks of what a backup needs: settings, servers, privileges, disk space, clock.

Add a precondition here. Checking one changes nothing. Imports only `config` and `core`.
"""
