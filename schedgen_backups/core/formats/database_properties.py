"""Properties of a database besides its content, as written by `pg_dump --create`."""

from __future__ import annotations

from collections import Counter

from schedgen_backups.core.model import FrozenModel


class DatabaseSetting(FrozenModel):
    """A setting of ALTER DATABASE … SET, or of ALTER ROLE … IN DATABASE … SET."""

    role: str = ""
    """Empty for all roles."""
    name: str
    value: str

    @property
    def label(self) -> str:
        """Label for messages, without the value, which may be a secret of the application."""
        return f"{self.name} of the role {self.role}" if self.role else self.name


class DatabaseGrant(FrozenModel):
    """One privilege on the database."""

    grantee: str
    """Empty for PUBLIC."""
    privilege: str
    is_grantable: bool = False


class DatabaseProperties(FrozenModel):
    """Owner, privileges, settings and collation of one database."""

    owner: str
    connection_limit: int = -1
    comment: str = ""
    is_template: bool = False
    tablespace: str = "pg_default"
    provider: str = "libc"
    """libc, icu or builtin."""
    collate: str
    ctype: str
    locale: str = ""
    """Locale of ICU and of the builtin provider."""
    icu_rules: str = ""
    grants: tuple[DatabaseGrant, ...] | None = None
    """None for the default privileges of a new database."""
    settings: tuple[DatabaseSetting, ...] = ()
    security_labels: tuple[tuple[str, str], ...] = ()
    """Provider and label."""

    @property
    def collation_label(self) -> str:
        """Provider and names for messages."""
        names = dict.fromkeys(name for name in (self.locale, self.collate, self.ctype) if name)
        return f"{self.provider} {'/'.join(names)}{' with rules' if self.icu_rules else ''}"

    def has_collation_of(self, other: DatabaseProperties) -> bool:
        """Return whether text is sorted and classified alike, according to the names.

        Versions of the libraries may still differ.
        """

        # UTF-8 has several spellings on servers.
        def spell(name: str) -> str:
            return name.replace("-", "").replace("UTF8", "utf8")

        mine, theirs = (
            (each.provider, spell(each.collate), spell(each.ctype), spell(each.locale), each.icu_rules)
            for each in (self, other)
        )
        return mine == theirs

    def list_differences(self, wanted: DatabaseProperties) -> tuple[str, ...]:
        """Return the differences to `wanted` as text, without values that may be secret.

        Comment and template flag are not compared.
        """
        parts: list[str] = []
        if self.owner != wanted.owner:
            parts.append(f"owner {self.owner} instead of {wanted.owner}")
        if (self.grants is None) != (wanted.grants is None) or Counter(self.grants or ()) != Counter(
            wanted.grants or ()
        ):
            parts.append("privileges")
        if self.connection_limit != wanted.connection_limit:
            parts.append(f"connection limit {self.connection_limit} instead of {wanted.connection_limit}")
        if self.tablespace != wanted.tablespace:
            parts.append(f"tablespace {self.tablespace} instead of {wanted.tablespace}")
        if dict(self.security_labels) != dict(wanted.security_labels):
            parts.append("security labels")
        if not self.has_collation_of(wanted):
            parts.append(f"collation {self.collation_label} instead of {wanted.collation_label}")
        changed = set(self.settings) ^ set(wanted.settings)
        parts += [f"setting {label}" for label in sorted({setting.label for setting in changed})]
        return tuple(parts)
