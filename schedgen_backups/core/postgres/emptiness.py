"""Count what a dump of a database would contain, within schemas and outside them."""

from __future__ import annotations

import psycopg

_COUNT_OBJECTS = """
WITH extension AS (SELECT objid, classid FROM pg_catalog.pg_depend WHERE deptype = 'e'),
namespace AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_'
    AND nspname <> 'information_schema'),
object AS (
    SELECT 'pg_class' AS catalog, oid FROM pg_catalog.pg_class
        WHERE relnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_proc', oid FROM pg_catalog.pg_proc WHERE pronamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_type', oid FROM pg_catalog.pg_type WHERE typnamespace IN (SELECT oid FROM namespace)
        AND (typtype IN ('d', 'e', 'r', 'p') OR typtype = 'b' AND typcategory <> 'A')
    UNION ALL SELECT 'pg_operator', oid FROM pg_catalog.pg_operator
        WHERE oprnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_opclass', oid FROM pg_catalog.pg_opclass
        WHERE opcnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_opfamily', oid FROM pg_catalog.pg_opfamily
        WHERE opfnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_collation', oid FROM pg_catalog.pg_collation
        WHERE collnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_conversion', oid FROM pg_catalog.pg_conversion
        WHERE connamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_ts_config', oid FROM pg_catalog.pg_ts_config
        WHERE cfgnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_ts_dict', oid FROM pg_catalog.pg_ts_dict
        WHERE dictnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_ts_parser', oid FROM pg_catalog.pg_ts_parser
        WHERE prsnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_ts_template', oid FROM pg_catalog.pg_ts_template
        WHERE tmplnamespace IN (SELECT oid FROM namespace)
    UNION ALL SELECT 'pg_namespace', oid FROM namespace
        WHERE oid IS DISTINCT FROM pg_catalog.to_regnamespace('public')
    UNION ALL SELECT 'pg_foreign_data_wrapper', oid FROM pg_catalog.pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_foreign_server', oid FROM pg_catalog.pg_foreign_server
    UNION ALL SELECT 'pg_publication', oid FROM pg_catalog.pg_publication
    UNION ALL SELECT 'pg_subscription', oid FROM pg_catalog.pg_subscription
        WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    UNION ALL SELECT 'pg_event_trigger', oid FROM pg_catalog.pg_event_trigger
    UNION ALL SELECT 'pg_default_acl', oid FROM pg_catalog.pg_default_acl
    UNION ALL SELECT 'pg_cast', oid FROM pg_catalog.pg_cast WHERE oid >= 16384
    UNION ALL SELECT 'pg_language', oid FROM pg_catalog.pg_language WHERE oid >= 16384
    UNION ALL SELECT 'pg_am', oid FROM pg_catalog.pg_am WHERE oid >= 16384
    UNION ALL SELECT 'pg_transform', oid FROM pg_catalog.pg_transform
    UNION ALL SELECT 'pg_extension', oid FROM pg_catalog.pg_extension WHERE oid >= 16384
        AND pg_catalog.pg_has_role(extowner, 'USAGE')
)
SELECT (SELECT count(*) FROM object WHERE NOT EXISTS (
            SELECT FROM extension WHERE objid = object.oid
                AND classid = ('pg_catalog.' || object.catalog)::pg_catalog.regclass))
     + (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata)
"""
"""PostgreSQL's own objects are excluded by their schema, or by an object identifier below the first one that
initdb leaves free (FirstNormalObjectId). Members of extensions are excluded with their extension. Extensions
owned by the server's provider do not count as contents. User mappings belong to their servers."""


def count_user_objects(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    """Return the number of user objects in the database that a dump could contain; 0 means empty."""
    row = connection.execute(_COUNT_OBJECTS).fetchone()
    count = row[0] if row else 0
    assert isinstance(count, int)  # noqa: S101 - the column's type
    return count
