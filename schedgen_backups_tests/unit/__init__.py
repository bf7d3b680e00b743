"""Tests of small parts outside core that need no server."""
