"""Alerts and how they reach people: channels, incidents, the heartbeat, redaction of secrets.

Add a channel in `channels`. What a failure means is decided in the package `alerts` at the edge.
"""
