"""The roles that docs/restore.md recommends, and an application with an unprivileged owner.

The roles are created with the document's own SQL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from schedgen_backups.core.settings import DatabaseSettings
from schedgen_backups_tests.support.servers import run

RESTORE_DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "restore.md"
PASSWORD = "p"


@dataclass(frozen=True)
class DocumentedRoles:
    """One database, as each of the three roles logs in to it."""

    owner: DatabaseSettings
    reader: DatabaseSettings
    restorer: DatabaseSettings


def make_documented_roles(database: DatabaseSettings) -> DocumentedRoles:
    """Give the database to its own role; `database` is a superuser's."""
    name = database.database
    owner, reader, restorer = (f"{kind}_{name}" for kind in ("owner", "reader", "restorer"))
    run(database, f"CREATE ROLE {owner} LOGIN PASSWORD '{PASSWORD}'; ALTER DATABASE {name} OWNER TO {owner}")
    [statements] = re.findall(
        r"^```sql\n(.*?)^```$", RESTORE_DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for documented, ours in (
        ("schedgen_backup", reader),
        ("schedgen_restore", restorer),
        ("schedgen", owner),
        ("'…'", f"'{PASSWORD}'"),
    ):
        statements = re.sub(rf"(?<![\w]){documented}(?![\w])", ours, statements)
    for statement in statements.splitlines():
        run(database, statement)
    return DocumentedRoles(
        *(replace(database, user=user, password=PASSWORD) for user in (owner, reader, restorer))
    )
