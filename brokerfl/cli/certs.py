"""`brokerfl certs`: a small authority, and a certificate for Redis. Owns what is in them, and their files."""

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import click

from brokerfl.cli.exits import Command
from brokerfl.cli.options import FilePath, Text
from brokerfl.cli.tables import show_text
from brokerfl.common import ConfigError
from brokerfl.common.keypair import check_cryptography
from brokerfl.common.private import NotOursError, private_directory, read_private, write_private

#: Days that an authority and a certificate are valid. A new certificate needs no new authority.
_OF_AUTHORITY, _OF_CERTIFICATE = 3650, 825

#: The files, of which those that end in .key are secret.
CA, CA_KEY, CERT, KEY = "ca.crt", "ca.key", "server.crt", "server.key"


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=FilePath(file_okay=False, path_type=Path))
@click.argument("hosts", metavar="HOST...", type=Text(), nargs=-1, required=True)
def certs(folder: Path, hosts: tuple[str, ...]) -> None:
    """Make a small authority and a certificate for Redis in DIR.

    Each HOST is a name or an IP address under which Redis is reached. If DIR has an authority, that signs. Nothing is
    overwritten: for a new certificate, move server.crt and server.key away.
    """
    made = make_certificates(folder, hosts)
    show_text(
        f"{', '.join(path.name for path in made)} made in {folder}.\n"
        f"Redis: tls-cert-file {folder / CERT}, tls-key-file {folder / KEY}, tls-auth-clients no\n"
        f"Everybody else: --ca-cert {folder / CA}; grants have it in them. Keep {CA_KEY} away from Redis."
    )


def make_certificates(folder: Path, hosts: tuple[str, ...]) -> list[Path]:
    """Make what is missing in a directory; return the files that were made.

    Raises:
        ConfigError: a certificate is there already, or files are missing or cannot be used.
        MissingExtra: cryptography is not installed.
    """
    check_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    for name in (CERT, KEY):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name} is there already: nothing was changed; move it away for a new one")
    try:
        private_directory(folder)
        authority = _read_authority(folder)
        contents: dict[str, bytes] = {}
        if authority is None:
            authority = _make_authority()
            contents |= {CA_KEY: _pem(authority[1]), CA: authority[0].public_bytes(serialization.Encoding.PEM)}
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_name(host) for host in hosts])
        certificate = (
            _builder(x509.Name([_common_name(hosts[0])]), authority[0].subject, key, _OF_CERTIFICATE)
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(_of_authority(authority[0]), critical=False)
            .sign(authority[1], hashes.SHA256())
        )
        contents |= {KEY: _pem(key), CERT: certificate.public_bytes(serialization.Encoding.PEM)}
        for name, content in contents.items():
            write_private(folder / name, content, mode=0o600 if name.endswith(".key") else 0o644)
    except NotOursError as error:
        raise ConfigError(f"{error.strerror}: name another directory") from None
    except FileExistsError as error:
        raise ConfigError(
            f"{folder}: {error.filename2 or error.filename} is there already: nothing is overwritten"
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used: {error.strerror}") from None
    return [folder / name for name in contents]


def _read_authority(folder: Path) -> tuple[Any, Any] | None:
    """Return certificate and key of the authority that is there; None if there is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    there = [(folder / name).exists() for name in (CA, CA_KEY)]
    if not any(there):
        return None
    if not all(there):
        raise ConfigError(f"{folder} has only one of {CA} and {CA_KEY}: both are needed, or none")
    try:
        certificate = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        return certificate, serialization.load_pem_private_key(read_private(folder / CA_KEY), None)
    except ValueError:
        raise ConfigError(f"{folder / CA} or {folder / CA_KEY} is no PEM file, or has a passphrase") from None


def _make_authority() -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([_common_name("brokerfl authority")])
    certificate = (
        _builder(name, name, key, _OF_AUTHORITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _builder(subject: Any, issuer: Any, key: Any, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _of_authority(certificate: Any) -> Any:
    from cryptography import x509

    known = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _common_name(text: str) -> Any:
    from cryptography import x509

    return x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, text[:64])


def _usage(**wanted: bool) -> Any:
    from cryptography import x509

    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})


def _name(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except (UnicodeError, ValueError):
        raise ConfigError(f"{host!r} is neither a name nor an IP address") from None


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
