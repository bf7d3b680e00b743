"""Statements of a dump that a superuser may run for it: they evaluate no expression and call no function.

Only the forms that pg_dump writes are accepted. The dump may be hostile: before you add a form, check what it
could execute; docs/decisions/0017 has the reasons. Forms match the whole statement, and only without
comments: otherwise the server might see a name or a value end earlier.
"""

from __future__ import annotations

import re

from schedgen_backups.core.formats.sql_quotes import has_comment_or_dollar_quote

# Each text can be parsed in one way only. Otherwise a run of quotes would match in as many ways as it can be
# split.
_PARTS = {
    "quoted": r'"(?:[^"]|"")+"(?!")',
    "name": r"(?:<quoted>|[a-z_\x80-\xff][a-z0-9_$\x80-\xff]*)",
    "role": r"(?!(?:current_user|current_role|session_user|public)\b)<name>",
    "own": r'(?!pg_|information_schema\b|"pg_|"information_schema")<name>',
    # As the server reads them with standard_conforming_strings, which our sessions set: backslash escapes
    # only after E.
    "string": r"(?:'(?:[^']|'')*'(?!')|E'(?:[^'\\]|''|\\.)*'(?!'))",
    # Parameter types of a function: names, never an expression.
    "signature": r"""\((?:[^()'";\\]|<quoted>|\(\d+(?:,\d+)?\))*\)""",
    "columns": r"\(<name>(?:, ?<name>)*\)",
    "operator": r"[-+*/<>=~!@#%^&|`?]+",
    # A system type in words that are not keywords of the statements, or a type in a schema.
    "word": r"(?!(?i:USING|FAMILY|AS)\b)[a-z]+",
    "type": r"(?:<word>(?: <word>){0,3}|<name>\.<name>)(?:\(\d+(?:,\d+)?\))?(?:\[\])*",
}
_SCHEMA_KINDS = (
    "AGGREGATE|COLLATION|CONVERSION|DOMAIN|FOREIGN TABLE|FUNCTION|MATERIALIZED VIEW|OPERATOR "
    "CLASS|OPERATOR FAMILY|OPERATOR|PROCEDURE|SEQUENCE|"
    "STATISTICS|TABLE|TEXT SEARCH CONFIGURATION|TEXT SEARCH DICTIONARY|TYPE|VIEW"
)
_WATCHED = (
    r"pg_stat_reset(?:_[a-z_]+)?|pg_ls_(?:log|wal|tmp|archive_status|replslot|logicalsnap|logicalmap)dir|pg_current_logfile|pg_switch_wal|"
    r"pg_create_restore_point|pg_backup_(?:start|stop)|pg_wal_replay_(?:pause|resume)|pg_get_(?:backend_memory_contexts|shmem_allocations)|"
    r"pg_log_backend_memory_contexts|pg_(?:terminate|cancel)_backend|pg_control_(?:checkpoint|system|init|recovery)|pg_config|pg_show_all_file_settings"
)
_GLOBAL_KINDS = "EVENT TRIGGER|FOREIGN DATA WRAPPER|PUBLICATION|SCHEMA|SERVER|SUBSCRIPTION"


def make_form(pattern: str) -> re.Pattern[bytes]:
    """Compile the form of a statement; `<name>` and the like are replaced from `_PARTS`."""
    while found := re.search(r"(?<!\?P)<([a-z]+)>", pattern):
        pattern = pattern.replace(found[0], _PARTS[found[1]])
    return re.compile(pattern.encode("latin-1"), re.DOTALL)


# Never the system's objects: the owner of the schema pg_catalog can replace functions that a superuser calls.
OWNER = make_form(
    rf"ALTER (?:(?:{_SCHEMA_KINDS}) <own>\.(?:<name>|<operator>) ?(?:<signature>)?(?: USING "
    rf"<name>)?|(?:{_GLOBAL_KINDS}) <own>|LARGE OBJECT [0-9]+)"
    r" OWNER TO (?P<new_owner><role>);"
)
EXTENSION = make_form(r"CREATE EXTENSION IF NOT EXISTS (?P<extension><name>)(?: WITH SCHEMA <name>)?;")
# Not on system objects: a grant on pg_read_file would allow reading the server's files.
_GRANT = make_form(
    r"(?:GRANT|REVOKE) [A-Z]+(?: ?<columns>)?(?:,[A-Z]+(?: ?<columns>)?)* ON (?:"
    r"(?:TABLE|SEQUENCE|FUNCTION|PROCEDURE|TYPE|DOMAIN) "
    r"<own>\.<name>(?:<signature>)?|(?:SCHEMA|LANGUAGE|FOREIGN DATA WRAPPER|FOREIGN SERVER) <own>|"
    r"LARGE OBJECT [0-9]+) (?:TO|FROM) (?:PUBLIC|<role>)(?: WITH GRANT OPTION)?;"
)
_SYSTEM = r"(?:pg_catalog|information_schema)\."
# Affects the scratch database only, even if the object exists on the whole server.
_SYSTEM_REVOKE = make_form(
    r"REVOKE [A-Z]+(?: ?<columns>)?(?:,[A-Z]+(?: ?<columns>)?)* ON "
    rf"(?:TABLE|FUNCTION|PROCEDURE|TYPE) {_SYSTEM}<name>(?:<signature>)? FROM (?:PUBLIC|<role>);"
)
# On the drill's own server: privileges usually granted to monitoring roles. They read no file or directory
# outside the server's.
_SYSTEM_GRANT = make_form(
    rf"GRANT (?:SELECT(?: ?<columns>)?(?:,SELECT ?<columns>)* ON TABLE {_SYSTEM}<name>|ALL ON FUNCTION "
    rf"{_SYSTEM}(?:{_WATCHED})<signature>)"
    r" TO (?:PUBLIC|<role>)(?: WITH GRANT OPTION)?;"
)
_SYSTEM_PRIVILEGE = make_form(
    r"(?:GRANT|REVOKE) [A-Z, ()a-z_\"]+ ON (?:TABLE|FUNCTION|PROCEDURE|TYPE) "
    rf"{_SYSTEM}<name>(?:<signature>)? (?:TO|FROM) [^;'()]*;"
)
# Deliberately broad: a statement without a signature that the server can parse counts as a grant.
GIVEN_FUNCTION = make_form(
    r"(?:GRANT [^\"]* ON|ALTER) (?:AGGREGATE|FUNCTION|PROCEDURE) "
    r"(?P<function>(?P<its_schema><name>)\.(?P<its_name><name>)(?: ?(?P<parameters><signature>)|(?= "
    r"(?:TO|FROM|OWNER) )))?"
)
# The server does not check the types of functions that a GiST, GIN or SP-GiST index calls: those of another
# type can crash it.
OPERATOR_CLASS = make_form(r"(?:CREATE OPERATOR CLASS|ALTER OPERATOR FAMILY) .*")
# Event triggers come last: they would run with the privileges of every later session.
_LATE = (
    make_form(
        r"CREATE EVENT TRIGGER <name> ON [a-z_]+(?:\s+WHEN TAG IN \(<string>(?:, ?<string>)*\))?"
        r"\s+EXECUTE (?:FUNCTION|PROCEDURE) (?:<name>\.)?<name>\(\);"
    ),
    make_form(r"ALTER EVENT TRIGGER <name> (?:OWNER TO <role>|DISABLE|ENABLE(?: REPLICA| ALWAYS)?);"),
    make_form(r"COMMENT ON EVENT TRIGGER <name> IS <string>;"),
)
# Single statements whose grammar has no expression and no call (PostgreSQL manual, part VI), or whose form
# allows none.
_FORMS = (
    OWNER,
    _GRANT,
    # Not on objects shared by the whole server.
    make_form(r"COMMENT ON (?!(?i:DATABASE|ROLE|TABLESPACE)\b)[A-Z]+ (?:[^'\"]|<quoted>)* IS <string>;"),
    # Sequences created by an extension's script: the loader owns all others, or is a member of their owner.
    make_form(r"SELECT pg_catalog\.setval\(<string>, -?[0-9]{1,19}, (?:true|false)\);"),
    make_form(r"CREATE PUBLICATION <name> FOR (?:ALL TABLES|TABLES IN SCHEMA <name>)(?: WITH \([^()]*\))?;"),
    make_form(r"ALTER PUBLICATION <name> ADD TABLES IN SCHEMA <name>;"),
    make_form(
        r"CREATE SUBSCRIPTION <name> CONNECTION <string> PUBLICATION <name>(?:, ?<name>)* WITH \(connect = "
        r"false[^()]*\);"
    ),
    make_form(
        r"CREATE SERVER <name>(?: TYPE <string>)?(?: VERSION <string>)? FOREIGN DATA WRAPPER <name>"
        r"(?: OPTIONS \(\s*<name> <string>(?:,\s+<name> <string>)*\s*\))?;"
    ),
    # Only in schemas of the dump: a support function in a family of the system would run in a superuser's
    # queries.
    make_form(r"CREATE OPERATOR FAMILY <own>\.<name> USING <name>;"),
    make_form(
        # A type's default class does not depend on a schema: one for a system type would be used by every
        # session, including ours.
        r"CREATE OPERATOR CLASS <own>\.<name>\s+(?:FOR TYPE <type>|DEFAULT FOR TYPE <own>\.<name>) USING "
        r"<name>"
        r"(?: FAMILY <own>\.<name>)? AS\s(?!.*\b(?i:STORAGE|FAMILY)\b)[^;']*;"
    ),
    make_form(r"ALTER OPERATOR FAMILY <own>\.<name> USING <name> ADD\s(?!.*\b(?i:STORAGE)\b)[^;']*;"),
)
HARMLESS_EXTENSIONS = frozenset(
    {
        "amcheck",
        "bloom",
        "btree_gin",
        "btree_gist",
        "citext",
        "cube",
        "dict_int",
        "dblink",
        "dict_xsyn",
        "earthdistance",
        "file_fdw",
        "fuzzystrmatch",
        "hstore",
        "intagg",
        "intarray",
        "isn",
        "lo",
        "ltree",
        "pg_buffercache",
        "pg_freespacemap",
        "pg_prewarm",
        "pg_stat_statements",
        "pg_trgm",
        "pg_visibility",
        "pg_walinspect",
        "pgcrypto",
        "pgrowlocks",
        "pgstattuple",
        "postgis",
        "postgis_raster",
        "postgis_topology",
        "postgres_fdw",
        "seg",
        "sslinfo",
        "tablefunc",
        "tcn",
        "tsm_system_rows",
        "tsm_system_time",
        "unaccent",
        "uuid-ossp",
        "vector",
        "xml2",
    }
)
"""Extensions that a superuser may create for the loader: PostgreSQL's own modules without access to files,
programs or other servers, and two well-known ones. postgres_fdw connects elsewhere only for a role with its
own password (manual, F.38.3)."""


def makes_event_trigger(text: bytes) -> bool:
    """Return whether the statement creates or changes an event trigger in a form of pg_dump."""
    return any(form.fullmatch(text) for form in _LATE) and not has_comment_or_dollar_quote(text)


def gives_rights(text: bytes) -> bool:
    """Return whether the statement grants or revokes privileges on an object of the dump.

    Only forms of pg_dump match.
    """
    return _GRANT.fullmatch(text) is not None and not has_comment_or_dollar_quote(text)


def may_be_left_out(text: bytes) -> bool:
    """Return whether the statement only grants or revokes privileges on a system object.

    The rest of the dump loads without it.
    """
    return _SYSTEM_PRIVILEGE.fullmatch(text) is not None and not has_comment_or_dollar_quote(text)


def is_known(text: bytes, *, is_server_shared: bool) -> bool:
    """Return whether a superuser may run the statement unchanged.

    Extensions, event triggers and owners need further checks.
    """
    forms = (*_FORMS, _SYSTEM_REVOKE) if is_server_shared else (*_FORMS, _SYSTEM_REVOKE, _SYSTEM_GRANT)
    return any(form.fullmatch(text) for form in forms) and not has_comment_or_dollar_quote(text)
