"""The fields of every answer to `--json`: the source of docs/reference/json.md.

A test compares them with real answers.
"""

from __future__ import annotations

from collections.abc import Mapping

COMMON_FIELDS: Mapping[str, str] = {
    "format_version": "version of these shapes, now 1; increased when a field is renamed, removed or changes "
    "its meaning",
    "error": "if the command fails before it has a result: the reason, instead of the fields below",
    "hint": "with `error`: what to do",
    "exit_code": "with `error`: the exit code",
    "sites": "with `--all-sites`, instead of the fields below: the answer for each site, by its name; "
    "`settings_error` in it says why the settings of the site are wrong",
}
_POINT_ID = "ID of the recovery point"
POINT_FIELDS: Mapping[str, str] = {
    "id": _POINT_ID,
    "taken_at": "when it was taken",
    "state": "`verified`, `damaged`, `partial`, `foreign` or another state of `list`",
    "pin": "the pin, or null",
    "problems": "what is wrong with it",
    "unread_files": "files that were copied or modified since they were last read",
    "artifacts": "its files, with path and size, by `database` and `bucket`; if there are several, also by "
    "their names",
    "copies": "for each store that held it when last listed: `store`, `size_bytes`, `sent_at`, `listed_at`, "
    "`read_back_since` (since when every pack of the store was read back, or null), `opened_at` (when a "
    "drill restored this point from the store, or null)",
    "levels": "each verification level with its status and time",
    "manifest": "the manifest, or null if the point is not committed",
    "verification": "the newest check results: `check`, `status` (`passed`, `failed`, `missing in the live "
    "system`, `not configured`, "
    "`unknown`), `summary`, `figures`, `checked_at`, `checked_by`, `artifacts`",
}
SHAPES: Mapping[str, Mapping[str, str]] = {
    "accept-missing": {"accepted": "the objects, with reason, user and time"},
    "adopt": {"id": _POINT_ID, "adoption": "reason, user and time"},
    "alert-test": {"deliveries": "for each channel: `channel`, `accepted`, `answer`"},
    "audit": {
        "checked_at": "time of the check",
        "references": "number of rows that refer to an object",
        "objects": "number of objects",
        "rows_without_object": "keys in rows whose object is missing",
        "objects_without_row": "keys that no row refers to",
        "unreferenced_bytes": "size of the objects without a row",
    },
    "backup": {
        "id": _POINT_ID,
        "run_id": "Dagster's run",
        "success": "whether the point is verified and committed",
        "failures": "for each failed step: `step`, `reason`, `hint`",
        "exit_code": "the exit code",
    },
    "deploy": {"kind": "kind of deployment", "files": "paths of the written files"},
    "doctor": {
        "results": "for each precondition: `what`, `state` (`ok`, `note`, `problem`), `detail`, `fix`"
    },
    "drill": {
        "run_id": "Dagster's run",
        "success": "whether every check passed",
        "exit_code": "the exit code",
        "rto_seconds": "duration of the restore",
        "rpo_seconds": "age of the point at the start of the drill",
        "report": "check results and measurements, or null",
        "failures": "for each failed step: `step`, `reason`, `hint`",
    },
    "last": {
        "id": _POINT_ID,
        "taken_at": "when it was taken",
        "location": "its directory",
        "labels": "its labels",
        "reason": "its reason",
        "git_commit": "commit of BACKUP_GIT_DIRECTORY",
        "git_branch": "branch of BACKUP_GIT_DIRECTORY",
        "is_pinned": "whether it is pinned",
        "pinned_until": "when the pin ends, or null",
        "rollback": "the commands that restore `database` and `bucket`",
    },
    "fetch": {"id": _POINT_ID, "files": "paths of the fetched files"},
    "heal": {
        "healed": "packs that were made whole again",
        "damaged": "packs that stay damaged",
        "points": "state of each point that needs a healed pack, by its ID",
    },
    "list": {
        "points": "the recovery points, oldest first",
        "unmanaged": "files that other programs wrote",
        "copies": "with `--from`: `id` and `copied_at` of each copy; the other fields are empty then",
    },
    "log": {"entries": "one entry per restore"},
    "pin": {"id": _POINT_ID, "pin": "reason, user, time and end"},
    "prune": {
        "refusal": "why nothing is removed, or empty",
        "packs_kept_because": "why packs that nobody needs are kept, or empty",
        "freed_bytes": "size of what is removed",
        "decisions": "for each point: whether it is kept, and by which rule",
    },
    "receipts": {
        "receipts": "for each receipt: `name`, `valid`, `problem`, `event` (what it states), `subjects` "
        "(names of manifests)",
        "key_id": "with `show-key` and `new-key`: the id of the key that signs from now on",
        "public_key": "with `show-key` and `new-key`: its public half, PEM",
    },
    "restore": {
        "equal": "whether the result equals the backup",
        "seconds": "duration of each phase",
        "notes": "what could not be compared or restored",
        "results": "the check results",
        "steps": "with `--dry-run`, instead of the other fields: what would be done",
    },
    "restore-objects": {
        "id": _POINT_ID,
        "objects": "the objects, and how they differ",
        "written": "keys of the written objects, with `--bucket` and `--back`",
        "files": "paths of the written files, with `--to`",
    },
    "restore-tables": {
        "id": _POINT_ID,
        "tables": "the tables, and how they differ",
        "side_database": "the database that holds the captured rows, if it was kept",
        "written": "for each table: rows added and changed, with `--write`",
    },
    "show": POINT_FIELDS,
    "sites": {
        "sites": "with `list`, for each site: `name`, `directory`, `problem` (of its settings); or null",
        "name": "with `import-env`: the name of the site",
        "file": "with `import-env`: the file of sites",
        "secrets": "with `import-env`: the files of its secrets",
        "table": "with `import-env`: the settings in the file",
        "is_written": "with `import-env`: whether the files were written, false with `--dry-run`",
    },
    "status": {
        "state": "`OK`, `WARNING` or `CRITICAL`",
        "id": "newest verified point, or null",
        "age_seconds": "its age, or null",
        "max_age_seconds": "the limit",
        "damaged": "IDs of damaged points",
        "ahead": "IDs of points in the future",
        "to_be_read_again": "number of points that will be verified again",
        "open_incidents": "the open incidents",
        "copies": "of the newest verified point, or null if unknown: `count` (with the backup directory), "
        "`kinds_of_place`, `elsewhere` (not on this host, nor in a folder of it)",
        "stores": "for each store, as last seen: `name`, `error` (why it cannot be used, or null), "
        "`elsewhere`, `copies`, `newest_id` and `sent_at` of its newest copy, `listed_at`, "
        "`read_back_since`, `packs`, `packs_unread`, `opened_at`, `locked_until`, `attempted_at`, "
        "`last_failure`, `problems`",
    },
    "stores": {
        "stores": "for each store: `name`, `url`, `error`, and `state`, what was last seen of it",
        "store": "with an action, instead: the store; other fields depend on the action",
        "public": "with `make-key`: the public key",
        "private": "with `make-key`: the private key",
    },
    "undelete": {
        "tables": "the table, and how it differs",
        "objects": "the objects, and how they differ",
        "lost_keys": "keys that the rows refer to but the point does not contain",
        "rows_written": "number of rows, unless `--dry-run`",
        "objects_written": "keys of the written objects, unless `--dry-run`",
    },
    "unpin": {"id": _POINT_ID, "was_pinned": "whether there was a pin"},
    "verify": {"results": "for each point or file: its check results"},
}
