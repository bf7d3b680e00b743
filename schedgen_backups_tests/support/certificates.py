"""Certificates for test servers on the loopback address."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make_certificate(path: Path) -> Path:
    """Write a self-signed certificate for 127.0.0.1, with its key beside it."""
    return _write_certificate(path, None, is_authority=True)


def sign_certificate(path: Path, authority: Path, *, days: int = 1) -> Path:
    """Write a certificate for 127.0.0.1 by this authority, a file of `make_certificate`, with its key.

    It is valid until that many days from now.
    """
    return _write_certificate(path, authority, is_authority=False, days=days)


def _write_certificate(path: Path, authority: Path | None, *, is_authority: bool, days: int = 1) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, path.name)])
    issuer, issuer_key = name, key
    if authority is not None:
        issuer = x509.load_pem_x509_certificate(authority.read_bytes()).subject
        loaded = serialization.load_pem_private_key(authority.with_suffix(".key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        issuer_key = loaded
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(
            issuer,
            name,
            key.public_key(),
            x509.random_serial_number(),
            now - timedelta(days=10),
            now + timedelta(days=days),
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    written = path.with_suffix(".pem")
    written.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    written.with_suffix(".key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return written
