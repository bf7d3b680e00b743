"""Taking a backup: the database's dump and the bucket's archive, each on its own.

Add here what reads the live system in order to store it. Checking what was stored belongs to `verify`.
"""
