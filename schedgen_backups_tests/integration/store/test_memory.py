"""An upload needs no more than one copy of a pack beside the pack itself."""

from __future__ import annotations

import pickle
import subprocess
import sys

from schedgen_backups_tests.support.store_sites import MemorySite, StoreSite, for_sites

PACK_BYTES = 64 << 20
SLACK_BYTES = 24 << 20
"""Buffers of libraries and of the interpreter."""
_SCRIPT = f"""
import pickle, resource, sys
from schedgen_backups.core.store.open import open_store
location, capabilities = pickle.loads(bytes.fromhex(sys.stdin.read()))
store = open_store(location, capabilities)
store.put_new("packs/small", b"x" * 100_000)
store.get_range("packs/small", 0, 100_000)
pack = bytes({PACK_BYTES // 1024}) * 1024
assert max(pack[::4096]) == 0  # in memory, not only promised
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put_new("packs/large", pack)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@for_sites(lambda kind: not issubclass(kind, MemorySite) and not kind.capabilities.has_versions)
def test_an_upload_makes_at_most_one_copy(site: StoreSite) -> None:
    settings = pickle.dumps((site.location, site.capabilities)).hex()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], input=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown_bytes = int(done.stdout)
    assert grown_bytes <= PACK_BYTES + SLACK_BYTES
