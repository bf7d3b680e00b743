"""The guided installation: ask questions, plan the changes, apply them.

Add a question or a deployment here. Only what the plan shows is written. Nothing imports this package.
"""
