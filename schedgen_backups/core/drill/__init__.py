"""The restore drill: restores a point into empty servers, compares, measures and reports.

Add here what a drill proves. Whatever it creates is removed afterwards, also when the process is killed.
"""
