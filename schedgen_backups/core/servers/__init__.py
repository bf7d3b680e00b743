"""PostgreSQL and S3 servers of our own on loopback, for drills, the demo and tests.

Add here how such a server is started and removed. Nothing here touches production servers.
"""
