"""What the command line ends with, for scripts, cron and systemd: one number per kind of trouble.

0 done, 1 database, 2 bucket, 3 verification, 4 configuration, 5 another run holds the lock, 130 cancelled. Errors of core that know theirs bring it
along; which of several a run ends with is decided in `outcomes`.
"""

DATABASE_EXIT_CODE = 1
BUCKET_EXIT_CODE = 2
VERIFICATION_EXIT_CODE = 3
CONFIGURATION_EXIT_CODE = 4
LOCK_EXIT_CODE = 5
CANCELLED_EXIT_CODE = 130
"""What shells report of a program that Ctrl-C ended."""
