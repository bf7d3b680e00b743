"""Delivery of alerts: channels, incidents, the heartbeat, redaction of secrets.

Add a channel in `channels`. The package `alerts` decides what a failure means.
"""
