"""Keys for every port of an embedded SeaweedFS server, without which any local user could access its objects.

SeaweedFS consists of several servers in one process, which communicate over loopback ports. Their HTTP ports
require tokens of a signing key. Their gRPC ports require a certificate of an authority that exists only in
this directory (SeaweedFS wiki, Security Overview).
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from schedgen_backups.core.servers.loopback import write_private_file

_SIGNING = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
_COMPONENTS = ("volume", "master", "filer", "s3", "admin", "worker", "client")
_VALID_DAYS = 3650
_CERTIFICATE_NAME = "grpc.crt"
_KEY_NAME = "grpc.key"


def write_security_files(directory: Path) -> None:
    """Write a new `security.toml` with keys into the server's working directory, at each start.

    Paths in it are relative to that directory.
    """
    certificate, key = _make_certificate()
    write_private_file(directory / _CERTIFICATE_NAME, certificate)
    write_private_file(directory / _KEY_NAME, key)
    sections = [f'[{name}]\nkey = "{secrets.token_hex(32)}"\n' for name in _SIGNING]
    sections.append(f'[grpc]\nca = "{_CERTIFICATE_NAME}"\n')
    sections += [
        f'[grpc.{name}]\ncert = "{_CERTIFICATE_NAME}"\nkey = "{_KEY_NAME}"\n' for name in _COMPONENTS
    ]
    sections.append("[access]\nui = false\n\n[filer.expose_directory_metadata]\nenabled = false\n")
    write_private_file(directory / "security.toml", "\n".join(sections))


def _make_certificate() -> tuple[str, str]:
    """Return a self-signed certificate and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "schedgen-backups")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of virtual machines may jump.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"), private.decode("ascii")
