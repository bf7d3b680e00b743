"""The optional login of the UI, in front of a small application served by uvicorn, as Dagster's is."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from argon2 import PasswordHasher
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from schedgen_backups.config.config import load_config
from schedgen_backups.config.variables import ENV_FILE_VARIABLE, NAMES
from schedgen_backups.core.errors import ConfigurationError
from schedgen_backups.core.servers.loopback import LOOPBACK, free_ports
from schedgen_backups.ui.gate import HEALTH_PATH, Gate
from schedgen_backups_tests.support.sites import wait_until
from schedgen_backups_tests.support.ui import JSON, ask

pytestmark = [pytest.mark.edge]

HASHES = "\n".join(
    f"{user}:{PasswordHasher(1, 8, 1).hash(password)}"
    for user, password in (("anna", "pass:wörd"), ("ben", "b"))
)


def basic(user: str, password: str) -> tuple[str, str]:
    return "Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    env = tmp_path_factory.mktemp("settings") / "env"
    env.touch(mode=0o600)
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(env))


def answer(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("reached")


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Iterator[int]:
    """Yield the port of a gate with these settings."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    [port] = free_ports(1)
    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    server = uvicorn.Server(
        uvicorn.Config(
            Gate(app, load_config().ui), host=LOOPBACK, port=port, log_level="warning", proxy_headers=False
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the gate listens")
        yield port
    finally:
        server.should_exit = True
        thread.join()


def test_the_login_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch) as port:
        assert ask(port, "GET", "/").body == "reached"


def test_a_known_user_with_the_right_password_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, BACKUP_UI_PASSWORD=HASHES) as port:
        refused = ask(port, "GET", "/")
        assert (refused.status, refused.headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
        for header in (
            basic("anna", "pass:wörd"),
            basic("ben", "b"),
            ("Authorization", basic("ben", "b")[1].replace("Basic", "basic")),
        ):
            for _again in range(2):  # the second time from the cache
                assert ask(port, "GET", "/", [header]).body == "reached"


@pytest.mark.parametrize(
    "headers",
    [
        [basic("anna", "b")],
        [basic("Anna", "pass:wörd")],
        [basic("anna", "")],
        [basic("carla", "b")],
        [basic("", "")],
        [("Authorization", "Basic")],
        [("Authorization", "Basic !!!")],
        [("Authorization", "Basic " + b64encode(b"anna").decode())],
        [("Authorization", "Basic " + b64encode(b"\xff\xfe:x").decode())],
        [("Authorization", "Bearer " + basic("ben", "b")[1].split()[1])],
        [basic("anna", "x"), basic("ben", "b")],
        [("X-Remote-User", "ben")],
    ],
    ids=str,
)
def test_all_other_logins_are_refused(
    headers: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(monkeypatch, BACKUP_UI_PASSWORD=HASHES) as port:
        for _again in range(2):
            assert ask(port, "GET", "/", headers).status == 401
        assert ask(port, "POST", "/graphql", [*headers, JSON], "{}").status == 401
        assert ask(port, "GET", HEALTH_PATH, headers).body == "reached"


def test_a_login_does_not_open_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser sends the password whichever page makes the request."""
    with served(monkeypatch, BACKUP_UI_PASSWORD=HASHES) as port:
        assert (
            ask(
                port, "POST", "/graphql", [basic("ben", "b"), JSON, ("Origin", "http://evil.example")], "{}"
            ).status
            == 403
        )


def test_a_proxys_user_header_is_trusted_from_its_address_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = ("X-Remote-User", "anna")
    with served(
        monkeypatch, BACKUP_UI_USER_HEADER="X-Remote-User", BACKUP_UI_PROXIES="10.0.0.0/8, 127.0.0.1"
    ) as port:
        assert ask(port, "GET", "/", [user]).body == "reached"
        for headers in (
            [],
            [("X-Remote-User", "")],
            [("X-Remote-User", " ")],
            [user, user],
            [("X-Remote-Users", "anna")],
        ):
            assert ask(port, "GET", "/", headers).status == 401
    with served(monkeypatch, BACKUP_UI_USER_HEADER="X-Remote-User", BACKUP_UI_PROXIES="10.0.0.0/8") as port:
        for forwarded in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
            assert ask(port, "GET", "/", [user, (forwarded, "10.0.0.1")]).status == 401


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"BACKUP_UI_USER_HEADER": "X-User"}, "BACKUP_UI_PROXIES"),
        ({"BACKUP_UI_PROXIES": "127.0.0.1"}, "BACKUP_UI_USER_HEADER"),
        ({"BACKUP_UI_USER_HEADER": "X User", "BACKUP_UI_PROXIES": "127.0.0.1"}, "BACKUP_UI_USER_HEADER"),
        ({"BACKUP_UI_USER_HEADER": "X-User", "BACKUP_UI_PROXIES": "proxy"}, "BACKUP_UI_PROXIES"),
        ({"BACKUP_UI_PASSWORD": "anna:canary"}, "BACKUP_UI_PASSWORD"),
        ({"BACKUP_UI_PASSWORD": "canary"}, "BACKUP_UI_PASSWORD"),
        ({"BACKUP_UI_PASSWORD": f"{HASHES}\n{HASHES}"}, "BACKUP_UI_PASSWORD"),
        ({"BACKUP_UI_PASSWORD_FILE": "/nowhere/canary"}, "BACKUP_UI_PASSWORD_FILE"),
        ({"BACKUP_UI_HOSTS": "https://host"}, "BACKUP_UI_HOSTS"),
        ({"BACKUP_UI_HOSTS": "*"}, "BACKUP_UI_HOSTS"),
        ({"DAGSTER_WEBSERVER_URL": "host:3000"}, "DAGSTER_WEBSERVER_URL"),
    ],
    ids=lambda value: (
        " ".join(value) if isinstance(value, dict) else value
    ),  # the hashes differ in each process
)
def test_a_wrong_setting_is_an_error_and_never_disables_the_login(
    settings: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=named) as caught:
        _ = load_config().ui
    if named == "BACKUP_UI_PASSWORD":
        assert "canary" not in caught.value.message
