"""Write the lock files: `make lock`. A test fails while one lacks a dependency.

Each file in locks/ has what its extra or group adds to locks/host.txt, with the digests of every file and
without addresses: pip takes several of them at once. Versions are kept where pyproject.toml allows them, and
upgraded with `--upgrade`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
LOCKS = PROJECT / "locks"
OLDEST_PYTHON = "3.10"
EXTRAS = ("seed", "drill", "containers", "kubernetes", "gcs", "sftp")


def read_pins(name: str) -> list[str]:
    """Return each pin of a lock, with its marker and the lines of its digests."""
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8")
    return re.findall(r"^\S.*\n(?:[ ].*\n)*", text, re.MULTILINE)


def compile_lock(*words: str | Path) -> None:
    """Resolve sources for every Python version at once; an existing output's versions are preferred."""
    command = [Path(sys.executable).parent / "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", OLDEST_PYTHON, "--no-annotate", "--no-header", "--no-emit-index-url"]
    subprocess.run([*command, *words], cwd=PROJECT, check=True)


def write_lock(name: str, pins: Path, *words: str | Path, beyond: tuple[str, ...] = ()) -> None:
    """Write a lock with the versions of `pins`, without what the locks `beyond` have."""
    path = LOCKS / f"{name}.txt"
    # uv would prefer the versions of the old file.
    path.unlink(missing_ok=True)
    options = ("--generate-hashes", "--no-strip-extras", "--constraint", pins, "--output-file", path)
    compile_lock(*words, *options)
    # With its marker: a package may be needed on one system there, and on all of them here.
    known = {pin for lock in beyond for pin in read_pins(lock)}
    path.write_text("".join(pin for pin in read_pins(name) if pin not in known), encoding="utf-8")


def main() -> None:
    """Resolve everything once, then write each lock with the versions of that resolution."""
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        build, pins = Path(folder) / "build.in", Path(folder) / "pins.txt"
        build.write_text("\n".join(project["build-system"]["requires"]), encoding="utf-8")
        present = (pin for path in sorted(LOCKS.glob("*.txt")) for pin in read_pins(path.stem))
        pins.write_text("".join(dict.fromkeys(present)), encoding="utf-8")
        everything = ("pyproject.toml", "--all-extras", "--group")
        compile_lock(build, *everything, "mutation", *sys.argv[1:], "--output-file", pins)
        write_lock("build", pins, build)
        write_lock("host", pins, "pyproject.toml")
        for extra in EXTRAS:
            write_lock(extra, pins, "pyproject.toml", "--extra", extra, beyond=("host",))
        write_lock("dev", pins, *everything, "dev", beyond=("host", *EXTRAS))
        write_lock("mutation", pins, *everything, "mutation", beyond=("host", *EXTRAS, "dev"))


if __name__ == "__main__":
    main()
