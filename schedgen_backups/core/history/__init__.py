"""What happened at a site, as evidence: `history.jsonl` in the backup directory, only appended to.

Events as values, and the file. What an event means is decided by those who write and read it.
"""
