"""Stores of copies elsewhere: bytes under keys, in a folder, S3, Azure, Google Cloud Storage or by SFTP.

Add another kind of store here. What the keys mean is decided in `copies`; nothing here knows of recovery
points. Every store passes the same contract tests (integration/store/test_contract.py).
"""
