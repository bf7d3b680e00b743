"""The report of a month: what was taken, proved, missed, removed and restored, as values, JSON and one page.

Built from the history and from the points and receipts that exist. It reads no setting and asks no server.
"""
