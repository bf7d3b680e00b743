"""The questions of `setup` about stores of copies: each store is tried at once, then its readers are named.

Nothing is written here but what the trial puts into the store, and a private key where the operator asks for
a file. Add a question about stores here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import typer

from schedgen_backups.cli.app import out
from schedgen_backups.cli.progress import print_precondition_results, show_work
from schedgen_backups.cli.text import escape
from schedgen_backups.config.config import Config
from schedgen_backups.config.stores import NAME_PATTERN, STORES_VARIABLE
from schedgen_backups.core.errors import BackupError, ConfigurationError
from schedgen_backups.core.packs.encryption import AgeEncryptor, KeyPair, make_key_pair, read_key
from schedgen_backups.core.store.location import StoreLocation
from schedgen_backups.core.store.open import check_reading, open_store, probe_store, try_delete_probe
from schedgen_backups.core.store.protocol import Capabilities, MadeStore
from schedgen_backups.core.system.files import write_atomically
from schedgen_backups.doctor.stores import FEW_RECIPIENTS, judge_capabilities, judge_deletion
from schedgen_backups.setup.install import acting_as
from schedgen_backups.setup.store_file import NewStore, add_store, list_names, list_urls, read_tables_file
from schedgen_backups.setup.store_place import StorePlace

SCHEMES = {"file": "folder", "s3": "s3", "azure": "azure", "gs": "google", "sftp": "sftp"}
"""Scheme of a URL → the name that is suggested for such a store."""
_DEFAULT_LOCK_DAYS = "30"
_HIGHEST_DAYS = 36500
_SHOWN_KEY_CHARACTERS = 6
_MAKE = "make"
_TO_FILE = "file"


def try_store(place: StorePlace, name: str, location: StoreLocation, *, is_new: bool) -> Capabilities | None:
    """Write to the store, read and delete there, and print what it can do.

    Only a new folder is made a store: the mount point of an old one may be empty. Raise the store's errors;
    return None for a store that this machine cannot reach.
    """
    subject = f"store {name}"
    if not place.is_known_here(location):
        out.print(
            f"{escape(subject)}: only the containers can reach it; "
            f"`backup-cli stores prepare {escape(name)}` tries it there."
        )
        return None
    # The owner of a folder's files is the user that copies.
    owner = place.owner if urlsplit(location.url).scheme == "file" else None
    with show_work(out, f"trying {location.url}"), acting_as(owner):
        store = open_store(location)
        if is_new and isinstance(store, MadeStore):
            store.prepare()
        capabilities = probe_store(store, "")
        check_reading(store, "")
        is_deletable = try_delete_probe(store, "")
    print_precondition_results(
        out,
        [
            *judge_capabilities(subject, location.url, capabilities),
            judge_deletion(subject, is_deletable=is_deletable, is_append_only=False),
        ],
    )
    return capabilities


@dataclass(frozen=True)
class StoresPlan:
    """The file of stores with what setup adds to it."""

    place: StorePlace
    old_text: str
    new_text: str
    added: tuple[NewStore, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of all stores; none if the file is not TOML."""
        try:
            return list_names(self.new_text)
        except ConfigurationError:
            return []

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of this machine that are stores."""
        with suppress(ConfigurationError):
            urls = list_urls(self.new_text)
            return tuple(Path(unquote(urlsplit(url).path)) for url in urls if url.startswith("file:///"))
        return ()


def plan_stores(
    config: Config, place: StorePlace, *, is_new_file: bool, is_interactive: bool, is_dry: bool
) -> StoresPlan:
    """Try the stores that are described, and ask for further ones at a terminal.

    `is_new_file` says whether this run names the file for the first time: without a terminal, such a file
    must work, and a store of it is prepared.
    """
    if not is_interactive and not config.values.get(STORES_VARIABLE, "").strip():
        return StoresPlan(place, "", "")
    is_there = place.path.exists()
    # Bytes: reading text would change line endings.
    text = read_tables_file(place.path, variable=STORES_VARIABLE) if is_there else ""
    if is_there or not is_interactive:
        try:
            _try_described(config, place, is_new_file=is_new_file, is_dry=is_dry)
        except BackupError as error:
            if is_new_file and not is_interactive:
                raise ConfigurationError(error.message, hint=error.hint) from error
            _print_error("stores", error)
    plan = StoresPlan(place, text, text)
    if not is_interactive:
        return plan
    try:
        interview = StoreInterview(place, list_names(text), is_trial_allowed=not is_dry)
    except ConfigurationError as error:
        _print_error("stores", error)
        return plan
    while (store := interview.ask()) is not None:
        try:
            plan = StoresPlan(place, text, add_store(plan.new_text, store), (*plan.added, store))
        except ConfigurationError as error:
            _print_error(f"store {store.name}", error)
            continue
        interview.names.append(store.name)
    return plan


def _try_described(config: Config, place: StorePlace, *, is_new_file: bool, is_dry: bool) -> None:
    """Raise the error of the first store that does not work, after all were tried."""
    errors: list[BackupError] = []
    for entry in config.with_values({STORES_VARIABLE: str(place.path)}).stores:
        try:
            location = entry.require().location
            if not is_dry:
                here = replace(location, url=place.find_local_url(location.url))
                try_store(place, entry.name, here, is_new=is_new_file)
        except BackupError as error:
            errors.append(error)
    for error in errors[1:]:
        _print_error("stores", error)
    if errors:
        raise errors[0]


def _print_error(subject: str, error: BackupError) -> None:
    out.print(f"[bold red]{escape(subject)}:[/] {escape(error.message)}")
    if error.hint:
        out.print(f"[bold]What to do:[/] {escape(error.hint)}")


@dataclass
class StoreInterview:
    """The questions about new stores."""

    place: StorePlace
    names: list[str]
    """Names of the stores that the file describes already."""
    is_trial_allowed: bool
    _answers: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    _scheme: str = ""

    def ask(self) -> NewStore | None:
        """Return a store that works, with its readers; None if the operator wants none, or no other."""
        self._answers, self._scheme = {}, ""
        while True:
            url = self._ask_url()
            if not url:
                return None
            name = self._ask_name(SCHEMES[urlsplit(url).scheme])
            self._ask_access(urlsplit(url).scheme)
            try:
                capabilities = self._try(name, url)
                break
            except BackupError as error:
                _print_error(f"store {name}", error)
            if not typer.confirm("Correct the answers? Otherwise this store is left out", default=True):
                return None
        days = self._ask_lock_days() if capabilities is not None and capabilities.has_lock else 0
        return self._make(name, url, ask_recipients(), days)

    def _ask_url(self) -> str:
        other = "Another store" if self.names else "Store of copies"

        def parse(text: str) -> None:
            if text and urlsplit(text).scheme not in SCHEMES:
                raise ValueError(text)

        return self._ask(
            "url",
            f"{other}: file:///PATH, s3://BUCKET/PREFIX, azure://CONTAINER/PREFIX, gs://BUCKET/PREFIX or "
            "sftp://USER@HOST:PORT/PATH; none for no store",
            parse,
            "a URL that begins with " + ", ".join(f"{scheme}://" for scheme in SCHEMES),
            default="none",
        )

    def _ask_name(self, suggestion: str) -> str:
        number, default = 1, suggestion
        while default in self.names:
            number += 1
            default = f"{suggestion}{number}"

        def parse(text: str) -> None:
            if not NAME_PATTERN.fullmatch(text):
                raise ValueError(text)

        while True:
            name = self._ask(
                "name",
                "Name of the store",
                parse,
                "at most 31 small letters, digits and underscores, beginning with a letter",
                default=default,
                is_required=True,
            )
            if name not in self.names or typer.confirm(
                f"The file describes a store {name}. Replace its whole description? The old file is kept",
                default=False,
            ):
                return name
            self._answers.pop("name")

    def _ask_access(self, scheme: str) -> None:
        """Ask for what this kind of store needs; answers for another kind are dropped."""
        if scheme != self._scheme:
            self._answers = {name: self._answers[name] for name in ("url", "name")}
            self._scheme = scheme
        if scheme in {"s3", "azure"}:
            own = "AWS" if scheme == "s3" else "Azure"
            self._ask("endpoint", f"URL of the server (none: {own} itself)", _parse_endpoint, "http(s)://…")
            if self._answers["endpoint"].startswith("https://"):
                self._ask(
                    "certificates_file",
                    "File of the certificate authorities to trust (none: the public ones)",
                    _parse_file,
                    "a file that you can read",
                )
            else:
                self._answers.pop("certificates_file", None)
        if scheme == "s3":
            self._ask("region", "Region (none: us-east-1)")
        if scheme in {"s3", "azure"}:
            words = "Access key" if scheme == "s3" else "Name of the account"
            self._ask("access_key", words, is_required=True)
            words = "Secret key" if scheme == "s3" else "Key of the account"
            self._ask("secret", words, is_required=True, is_hidden=True)
        if scheme == "gs":
            self._ask(
                "key_file", "File of the service account (JSON)", _parse_file, "a file", is_required=True
            )
        if scheme == "sftp":
            self._ask("key_file", "File of the private key (none: a password)", _parse_file, "a file")
            has_key = bool(self._answers["key_file"])
            self._ask("secret", "Passphrase of the key" if has_key else "Password", is_hidden=True)
            self._ask(
                "host_key", "Public key of the server (ssh-keyscan, without the name)", is_required=True
            )

    def _ask_lock_days(self) -> int:
        def parse(text: str) -> None:
            if not 0 <= int(text or "0") <= _HIGHEST_DAYS:
                raise ValueError(text)

        days = self._ask(
            "lock_days",
            "Days to keep locked what a kept copy needs (0: extend no lock)",
            parse,
            "a number of days",
            default=_DEFAULT_LOCK_DAYS,
        )
        return int(days or "0")

    def _ask(
        self,
        name: str,
        text: str,
        parse: Callable[[str], object] = str,
        expected: str = "a value",
        *,
        default: str = "",
        is_required: bool = False,
        is_hidden: bool = False,
    ) -> str:
        """Ask; the default is the last answer, and `none` clears it."""
        known = self._answers.get(name, "") or default

        def take(answer: str) -> str:
            value = "" if answer.strip() in {"-", "none"} else answer.strip()
            try:
                parse(value)
                # A file must be able to hold it.
                value.encode()
            except (ValueError, OSError) as error:
                raise typer.BadParameter(f"expected {expected}") from error
            if not value and is_required:
                raise typer.BadParameter(f"expected {expected}")
            return value

        hint = " (Enter keeps the current value)" if is_hidden and known else ""
        self._answers[name] = typer.prompt(
            text + hint,
            default=known or ("" if not is_required else None),
            hide_input=is_hidden,
            show_default=bool(known) and not is_hidden,
            value_proc=take,
        )
        return self._answers[name]

    def _try(self, name: str, url: str) -> Capabilities | None:
        get = self._answers.get
        location = StoreLocation(
            url=url,
            endpoint=get("endpoint", ""),
            region=get("region", ""),
            access_key=get("access_key", ""),
            secret_key=get("secret", ""),
            key_file=_find_file(get("key_file", "")),
            host_key=get("host_key", ""),
            certificates_path=_find_file(get("certificates_file", "")),
        )
        self.place.find_url(url)
        if not self.is_trial_allowed:
            open_store(location)
            out.print(f"store {escape(name)}: not tried, since nothing may be written")
            return None
        return try_store(self.place, name, location, is_new=True)

    def _make(self, name: str, url: str, recipients: list[str], lock_days: int) -> NewStore:
        table: dict[str, str | int | list[str]] = {"url": self.place.find_url(url)}
        files: dict[str, bytes] = {}
        for setting in ("endpoint", "region", "access_key"):
            if value := self._answers.get(setting, ""):
                table[setting] = value
        if secret := self._answers.get("secret", ""):
            table["secret_key_file"] = self._add(files, f"{name}.secret", f"{secret}\n".encode())
        for setting, suffix in (("key_file", "key"), ("certificates_file", "pem")):
            # A copy of its own: the user or the container that copies may not see the operator's files.
            if path := _find_file(self._answers.get(setting, "")):
                table[setting] = self._add(files, f"{name}.{suffix}", path.read_bytes())
        if value := self._answers.get("host_key", ""):
            table["host_key"] = value
        table["recipients"] = recipients
        if lock_days:
            table["lock_days"] = lock_days
        self.place.note_store(url)
        return NewStore(name, table, files)

    def _add(self, files: dict[str, bytes], name: str, data: bytes) -> str:
        """Add a file under a name that no other store uses."""
        stem, _dot, suffix = name.partition(".")
        number, free = 1, name
        while (path := self.place.path.with_name(free)).exists() and path.read_bytes() != data:
            number += 1
            free = f"{stem}-{number}.{suffix}"
        files[free] = data
        return free


def ask_recipients() -> list[str]:
    """Return the public keys of those who may read the copies, at least one.

    Answers are hidden: a private key that was pasted by mistake must not stay on the screen.
    """
    out.print(
        "Copies are encrypted for public keys; two are recommended: one for the operator, one for the safe."
    )
    found: list[str] = []
    while True:
        more = f"Enter when all are named, or {_MAKE}" if found else _MAKE
        answer = typer.prompt(
            f"Public key {len(found) + 1}, hidden while you paste it ({more} to let setup make a key pair)",
            default="",
            hide_input=True,
            show_default=False,
        ).strip()
        if not answer and found:
            if len(found) >= FEW_RECIPIENTS:
                return found
            out.print("[yellow]With a single key, its loss is the loss of every copy.[/]")
            if typer.confirm("Continue with one public key?", default=False):
                return found
            continue
        key = _make_pair() if answer == _MAKE else answer
        problem = f"enter a public key, or {_MAKE}" if not key else _find_problem(key)
        if read_key(key) in map(read_key, found):
            problem = "this key is named already"
        if problem:
            out.print(f"[bold red]{escape(problem)}[/]")
            continue
        found.append(key)
        out.print(f"public key {len(found)}: {escape(key)}", soft_wrap=True)


def _find_problem(key: str) -> str:
    """Return why this is not a public key, without printing it."""
    try:
        AgeEncryptor([key])
    except ConfigurationError as error:
        return (
            f"{error.message}. {error.hint}"
            if "PRIVATE" in key.upper() or "SECRET" in key.upper()
            else "this is not a public key of age: they look like age1…, ssh-ed25519 … or ssh-rsa …"
        )
    return ""


def _make_pair() -> str:
    """Make a key pair and show the private half once; return the public one when the operator has kept it."""
    pair = make_key_pair()
    out.print(f"private key, shown only now: {pair.private}", soft_wrap=True)
    out.print(
        "Keep it away from this host, twice: in a password manager and on paper, for example. Without it no "
        "copy can be read."
    )
    while True:
        answer = typer.prompt(
            f"Last {_SHOWN_KEY_CHARACTERS} characters of the private key, once you have kept it "
            f"({_TO_FILE}: write it to a file on this host)"
        ).strip()
        if answer.upper() == pair.private[-_SHOWN_KEY_CHARACTERS:]:
            return pair.public
        if answer == _TO_FILE:
            if _write_private(pair):
                return pair.public
        else:
            out.print("[bold red]These are not its last characters.[/]")


def _write_private(pair: KeyPair) -> bool:
    """Write the pair as age-keygen does; return whether the operator named a file that could be written."""
    path = Path(typer.prompt("New file for the private key")).expanduser()
    try:
        if path.exists():
            raise FileExistsError(17, "it exists")
        write_atomically(path, f"# public key: {pair.public}\n{pair.private}\n".encode())
    except OSError as error:
        out.print(f"[bold red]{escape(str(path))} cannot be written: {escape(error.strerror or '')}[/]")
        return False
    out.print(
        f"written: {escape(str(path))}\n[yellow]Move it away: whoever takes this host over could read every "
        "copy with it.[/]"
    )
    return True


def _parse_endpoint(text: str) -> None:
    if text and (urlsplit(text).scheme not in {"http", "https"} or not urlsplit(text).hostname):
        raise ValueError(text)


def _parse_file(text: str) -> None:
    if (path := _find_file(text)) is not None:
        path.read_bytes()


def _find_file(text: str) -> Path | None:
    return Path(text).expanduser().absolute() if text else None
