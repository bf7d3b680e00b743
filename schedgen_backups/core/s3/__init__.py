"""Access to an S3 bucket, with its refusals as our errors.

Add requests here, as plain S3 calls that any server supports.
"""
