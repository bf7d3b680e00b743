"""The backup directory: points and their state, check results, pins, locks, the choice of a point.

Add here what reads or writes the directory's small files. It opens no artifact and talks to no server.
"""
