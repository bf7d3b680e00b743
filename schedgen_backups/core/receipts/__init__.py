"""Receipts: signed statements of what was committed, drilled, proved and restored at a site.

Each is an in-toto Statement (v1) in a DSSE envelope, signed with Ed25519. Keys and files; what happened is an
event of `history`.
"""
