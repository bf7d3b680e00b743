"""Tests against real PostgreSQL and S3 servers."""
