"""Where a store is and how to log in to it, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StoreLocation:
    """Address and credentials of a store; which fields count depends on the scheme of the URL."""

    url: str
    """`file:///PATH`, `s3://BUCKET/PREFIX`, `azure://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX` or
    `sftp://USER@HOST:PORT/PATH`; the prefix may be empty."""
    endpoint: str = ""
    """URL of the server for S3, Azure and Google Cloud Storage; empty for the provider's own."""
    region: str = ""
    """Region of S3; empty for `us-east-1`."""
    access_key: str = ""
    """S3 access key, or Azure account name."""
    secret_key: str = field(default="", repr=False)
    """S3 secret key, Azure account key, or password of SFTP."""
    key_file: Path | None = None
    """Private key of SFTP, or service account of Google Cloud Storage (JSON)."""
    host_key: str = ""
    """Public key of the SFTP server, as in a line of known_hosts without the name; required for SFTP."""
    certificates_path: Path | None = None
    """PEM file of the certificate authorities to trust; None for the public ones."""
    timeout_seconds: int = 60
    """Time without an answer after which a request has failed."""

    @property
    def place(self) -> str:
        """What tells this place from others: server, account and URL, without secrets."""
        account = self.access_key if self.url.startswith("azure:") else ""
        return " ".join(filter(None, (self.endpoint.rstrip("/"), account, self.url.rstrip("/"))))
