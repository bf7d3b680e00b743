"""The backup directory: recovery points and their state, check results, pins, locks, point selection.

Add here what reads or writes the small files of the directory. Nothing here opens an artifact or connects to
a server.
"""
