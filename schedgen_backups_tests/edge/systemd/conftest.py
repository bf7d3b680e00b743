"""One booted machine per worker, with the application and the project installed as documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from schedgen_backups_tests.edge.systemd.installation import Installation
from schedgen_backups_tests.support.booted_machine import booted_machine, find_reason_not_to_boot


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    reason = find_reason_not_to_boot()
    if reason is not None:
        pytest.skip(f"no systemd can be booted here: {reason}")
    with booted_machine(Path(mkdtemp(dir=tmp_path_factory.getbasetemp()))) as machine:
        installation = Installation(machine)
        installation.install(tmp_path_factory.mktemp("wheel"))
        yield installation


@pytest.fixture
def installation(installed: Installation) -> Iterator[Installation]:
    """No unit of ours is on it, no recovery point and no alert, and .env is right."""
    installed.clear()
    yield installed
    installed.clear()
