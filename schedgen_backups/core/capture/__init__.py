"""Take a backup: the database's dump and the bucket's archive, independently of each other.

Add here what reads the live system to store it. `verify` checks what was stored.
"""
