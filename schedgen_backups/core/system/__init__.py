"""Files, locks and processes of this machine.

Add calls to the operating system here. This package knows nothing about backups.
"""
