"""Functions that an extension's script revokes from PUBLIC: which of them a dump may grant.

Some connect without a password (dblink_connect_u) to anything that trusts the server's machine or user.
Others read data of the whole server (pg_walinspect). Add an extension to `_READS_ITS_SERVER_ONLY` only if
none of its functions opens a file or a connection.
"""

from __future__ import annotations

import psycopg

from schedgen_backups.core.formats.dump_text import unquote_identifier
from schedgen_backups.core.restore.known_statements import GIVEN_FUNCTION

_READS_ITS_SERVER_ONLY = (
    *(
        "amcheck",
        "pg_buffercache",
        "pg_freespacemap",
        "pg_prewarm",
        "pg_stat_statements",
        "pg_visibility",
        "pg_walinspect",
    ),
    *("pgrowlocks", "pgstattuple"),
)
"""Usually granted to monitoring roles. A server of the drill's own contains no other data to read."""
# By name first: pg_dump writes parameter names into a signature, which the catalog look-up does not accept.
_KEPT = """
    SELECT p.oid = pg_catalog.to_regprocedure(%(signature)s)
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid
        AND d.deptype = 'e'
    JOIN pg_catalog.pg_extension e ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
        AND e.oid = d.refobjid
    JOIN pg_catalog.pg_init_privs i ON i.classoid = 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND i.objoid = p.oid
    WHERE n.nspname = %(schema)s AND p.proname = %(name)s AND NOT (e.extname = ANY(%(given)s))
        AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(i.initprivs) a WHERE a.grantee = 0
            AND a.privilege_type = 'EXECUTE')"""


def gives_kept_function(
    text: bytes, superuser: psycopg.Connection[tuple[object, ...]], *, is_server_shared: bool
) -> bool:
    """Return whether the statement grants a function that its extension protects.

    Only functions whose reach exceeds this load count. True if unknown.
    """
    found = GIVEN_FUNCTION.match(text)
    if found is None:
        return False
    if found["function"] is None:
        return True
    try:
        encoding = superuser.info.encoding
        values = {
            "schema": unquote_identifier(found["its_schema"], encoding),
            "name": unquote_identifier(found["its_name"], encoding),
            "signature": found["function"].decode(encoding) if found["parameters"] else None,
            "given": [] if is_server_shared else list(_READS_ITS_SERVER_ONLY),
        }
        kept = superuser.execute(_KEPT, values).fetchall()
        # Among several functions of the name, only one that is certainly another is ignored.
        return any(is_this is not False for (is_this,) in kept)
    except (psycopg.Error, UnicodeDecodeError):  # a signature that only the parser of statements accepts
        return True
