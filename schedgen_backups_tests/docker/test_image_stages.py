"""The stages of the image: size and abilities of `runtime`, and its build from a deployed directory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from schedgen_backups_tests.support.docker import BASE_IMAGE, Stack, build_runtime, run_docker

pytestmark = pytest.mark.timeout(2400)

MOST_ADDED_BYTES = 260_000_000
"""What `runtime` may add to its base: 236 MB on 2026-11-29, on the stand-in of 194 MB. On the official base
of about 125 MB, with three more majors of clients at 3 to 4 MB each, that would be less than the wanted 400
MB."""
HARDENING = (
    "--read-only",
    "--tmpfs",
    "/tmp",  # noqa: S108
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges:true",
)
DEPLOYED_IMAGE = "schedgen-backups:test-deployed"
# Load every extension as Python does: stripping can damage a file.
_LOAD_LIBRARIES = """
import ctypes, pathlib, sysconfig
found = sorted(pathlib.Path(sysconfig.get_path("purelib")).rglob("*.so"))
for path in found:
    ctypes.CDLL(str(path))
print(len(found))
"""
_COUNT_COMPILED = """
import importlib.util, pathlib, sysconfig
sources = list(pathlib.Path(sysconfig.get_path("purelib")).rglob("dagster/**/*.py"))
compiled = [pathlib.Path(importlib.util.cache_from_source(str(path))) for path in sources]
print(len(sources), sum(path.is_file() for path in compiled))
"""


def run_in(image: str, *words: str) -> str:
    """What the words printed in a container of the image, hardened as those of the stack are."""
    return run_docker("run", "--rm", *HARDENING, image, *words)


def read_size(image: str) -> int:
    return int(run_docker("image", "inspect", "--format", "{{.Size}}", image))


def test_runtime_adds_little_to_its_base(runtime_image: str) -> None:
    assert read_size(runtime_image) - read_size(BASE_IMAGE) < MOST_ADDED_BYTES


def test_runtime_runs_the_command_line(runtime_image: str) -> None:
    assert "schedgen-backups" in run_in(runtime_image)
    assert run_in(runtime_image, "schedgen-backups", "--version").split()[-1] == "0.1.0"
    assert "restore" in run_in(runtime_image, "schedgen-backups", "--help")
    assert run_in(runtime_image, "stat", "--format", "%U", "/backups").strip() == "backup-runner"


def test_runtime_loads_the_code_location(runtime_image: str) -> None:
    program = "from schedgen_backups.definitions import defs; print(defs.resolve_job_def('backup_job').name)"
    assert run_in(runtime_image, "python3", "-c", program).split() == ["backup_job"]


def test_runtime_has_the_clients_of_every_built_major_and_no_server(runtime_image: str) -> None:
    """Debian's packages have one major; those of the PostgreSQL project are not reached here."""
    majors = run_in(runtime_image, "ls", "/usr/lib/postgresql").split()
    assert majors == ["15"]
    for major in majors:
        programs = run_in(runtime_image, "ls", f"/usr/lib/postgresql/{major}/bin").split()
        assert {"pg_dump", "pg_dumpall", "pg_restore", "psql"} <= set(programs)
        assert {"postgres", "initdb"}.isdisjoint(programs)
        for program in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
            assert f"(PostgreSQL) {major}." in run_in(
                runtime_image, f"/usr/lib/postgresql/{major}/bin/{program}", "--version"
            )
    # recover.py takes psql from PATH; with TLS, or a remote server refuses.
    assert f"(PostgreSQL) {majors[-1]}." in run_in(runtime_image, "psql", "--version")
    tls = run_in(runtime_image, "sh", "-c", "psql 'host=127.0.0.1 port=1 sslmode=require' 2>&1 || true")
    assert "Connection refused" in tls


def test_runtime_keeps_the_package_records_of_its_clients_for_scanners(runtime_image: str) -> None:
    records = set(run_in(runtime_image, "ls", "/var/lib/dpkg/status.d").split())
    assert {"postgresql-client-15", "libpq5"} <= records
    assert not any("perl" in name for name in records)


def test_stripped_libraries_still_load(runtime_image: str) -> None:
    assert int(run_in(runtime_image, "python3", "-c", _LOAD_LIBRARIES)) > 50


def test_packages_are_compiled(runtime_image: str) -> None:
    """A container cannot write compiled files, and each start would compile again."""
    sources, compiled = run_in(runtime_image, "python3", "-c", _COUNT_COMPILED).split()
    assert sources == compiled
    assert int(sources) > 500


def test_the_doctor_names_what_a_drill_lacks_and_the_other_stage(runtime_image: str) -> None:
    results = json.loads(
        run_docker("run", "--rm", runtime_image, "sh", "-c", "schedgen-backups doctor --json || true")
    )
    [drill] = [result for result in results["results"] if result["what"] == "drill"]
    assert (drill["state"], "lacks PostgreSQL server and S3 server" in drill["detail"]) == ("note", True)
    assert "stage `drill`" in drill["fix"]


def test_a_drill_in_runtime_fails_and_names_the_other_stage(
    stack: Stack, first_run: str, runtime_image: str
) -> None:
    assert stack.read_run(first_run)[0] == "SUCCESS"
    words = (
        "run",
        "--rm",
        "--no-TTY",
        "--entrypoint",
        "sh",
        "backup-cli",
        "-c",
        "schedgen-backups drill 2>&1; echo exit code $?",
    )
    output = " ".join(stack.compose(*words, image=runtime_image).split())
    assert "this machine has no PostgreSQL server of version 15 or newer" in output
    assert "stage `drill`" in output
    assert "exit code 0" not in output


def test_the_image_is_built_from_what_deploy_compose_writes(runtime_image: str, tmp_path: Path) -> None:
    """The command runs in a container, where no checkout is."""
    command = (
        "cd /tmp && schedgen-backups deploy compose --to deployed >&2 && tar --create --directory deployed ."
    )
    archive = subprocess.run(
        ["docker", "run", "--rm", *HARDENING, runtime_image, "sh", "-c", command],
        capture_output=True,
        check=True,
    ).stdout
    subprocess.run(
        ["tar", "--extract", "--no-same-owner", "--directory", tmp_path], input=archive, check=True
    )
    # The wheel is built again. The layer of its dependencies is that of the checkout, whose files are the
    # same.
    (tmp_path / "docs" / "schedgen-backups.1").write_text(".TH deployed\n")
    build_runtime(tmp_path, DEPLOYED_IMAGE)
    assert "restore" in run_in(DEPLOYED_IMAGE, "schedgen-backups", "--help")
    assert run_in(DEPLOYED_IMAGE, "cat", "/opt/venv/share/man/man1/schedgen-backups.1") == ".TH deployed\n"
    assert run_in(DEPLOYED_IMAGE, "schedgen-backups", "--version") == run_in(
        runtime_image, "schedgen-backups", "--version"
    )
    assert (
        run_in(DEPLOYED_IMAGE, "stat", "--format", "%a", "/opt/dagster/gate/dagster-webserver").strip()
        == "755"
    )
