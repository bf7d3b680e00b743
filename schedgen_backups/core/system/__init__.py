"""Files, locks and processes of this machine.

Add here what talks to the operating system. It knows nothing about backups.
"""
