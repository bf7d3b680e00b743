"""The restore drill: restore a point into empty servers, compare, measure and report.

Add here what a drill proves. Whatever it creates is removed afterwards, even when the process is killed.
"""
