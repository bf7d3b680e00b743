"""One stack for all tests of the container deployment, because starting it takes 90 seconds.

Each test leaves the stack as it found it.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from schedgen_backups_tests.support.docker import (
    PROJECT,
    RUNTIME_IMAGE,
    Stack,
    build_runtime,
    make_stand_ins,
    run_docker,
)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield the running deployment with a filled application."""
    make_stand_ins()
    started = Stack(tmp_path_factory.mktemp("stack"), f"schedgen-backups-test-{uuid4().hex[:8]}")
    try:
        started.start()
        yield started
    finally:
        started.stop()
    assert run_docker("ps", "--all", "--quiet", "--filter", f"name={started.name}").split() == []


@pytest.fixture(scope="session")
def runtime_image() -> str:
    """The tag of the stage `runtime`, built from the checkout."""
    make_stand_ins()
    build_runtime(PROJECT, RUNTIME_IMAGE)
    return RUNTIME_IMAGE


@pytest.fixture(scope="session")
def first_run(stack: Stack) -> str:
    """Return the id of a successful backup that was requested from the webserver."""
    run_id = stack.launch("backup_job")
    assert stack.wait_for_end(run_id) == "SUCCESS"
    return run_id
