"""Reference queries of well-known applications, and the columns that hold their object keys.

Sources: Rails' Active Storage guide (table `active_storage_blobs`, column `key`), and Supabase Storage (table
`storage.objects`; an object is `TENANT/BUCKET/NAME/VERSION`, and the tenant of a self-hosted one is `stub`).
A new application also needs a chapter in docs/presets.md and a test on its tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from schedgen_backups.core.settings import KeyColumns, References

NO_PRESET = "none"
"""Preset without a reference query: it is unknown which object keys the rows hold."""
PRESETS: Mapping[str, References] = MappingProxyType(
    {
        "schedgen": References(),
        "active-storage": References(
            "SELECT key FROM active_storage_blobs", KeyColumns("active_storage_blobs", ("key",))
        ),
        "supabase": References(
            "SELECT 'stub/' || bucket_id || '/' || name || coalesce('/' || version, '') FROM storage.objects",
            KeyColumns("storage.objects", ("bucket_id", "name", "version"), prefix="stub/"),
        ),
        NO_PRESET: References("", built_in=None),
    }
)
