"""Talking to an S3 bucket, and its refusals as our errors.

Add here what is asked of a bucket, in plain S3 calls that any server answers.
"""
