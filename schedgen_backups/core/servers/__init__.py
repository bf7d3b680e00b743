"""Embedded PostgreSQL and S3 servers on loopback, for drills, the demo and tests.

Add code that starts and removes such a server. This package never connects to production servers.
"""
