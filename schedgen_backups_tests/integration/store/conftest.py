"""Fixtures of stores: a fresh place on each server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schedgen_backups.core.store.protocol import ProbedStore
from schedgen_backups_tests.support.store_sites import (
    DIFFERENCES,
    QUICK,
    SITE_FILTER,
    SITES,
    SOMETIMES,
    Servers,
    StoreSite,
)


@pytest.fixture(scope="session")
def store_servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """Yield the servers of stores."""
    keys = getattr(request.config, "workerinput", {}).get("shared_s3")
    servers = Servers(tmp_path_factory.mktemp, keys or None)
    yield servers
    servers.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on the sites that its `for_sites` allows, and each site's test under its name."""
    if "site" in metafunc.fixturenames:
        allows = getattr(metafunc.function, SITE_FILTER, lambda _site: True)
        metafunc.parametrize(
            "site",
            [
                pytest.param(name, marks=_mark_site(name, metafunc.function.__name__))
                for name, kind in SITES.items()
                if allows(kind)
            ],
            indirect=True,
        )


def _mark_site(name: str, test: str) -> list[pytest.MarkDecorator]:
    reason = DIFFERENCES.get((name, test))
    return [
        *([] if name in QUICK else [pytest.mark.exhaustive]),
        *([pytest.mark.xfail(reason=reason, strict=reason not in SOMETIMES)] if reason else []),
    ]


@pytest.fixture
def site(request: pytest.FixtureRequest, store_servers: Servers) -> StoreSite:
    """Return a fresh place for a store."""
    return SITES[request.param](store_servers)


@pytest.fixture
def store(site: StoreSite) -> ProbedStore:
    """Return the store at that place."""
    return site.open()
