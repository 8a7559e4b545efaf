"""What `brokerfl up --secure` needs: an ACL file, a certificate, and the credentials of the first operator.

Owns the files in its data directory, which are made at the first start and kept. It must not know how the server runs.

    users.acl             who may do what; the server rewrites it
    operator.credentials  the first operator, and beside it its grant
    tls/                  authority and certificate, unless the user has others
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from brokerfl.broker.connection import TLS, connect
from brokerfl.broker.embedded import Certificate, version_of
from brokerfl.broker.keys import Keys
from brokerfl.broker.members import Office, user_of
from brokerfl.broker.rules import Role, acl_of
from brokerfl.cli.certs import CA, CERT, KEY, make_certificates
from brokerfl.cli.login import read_login
from brokerfl.common import ConfigError, CredentialsError
from brokerfl.common.credentials import Credentials, Grant, Party, grant_of, keep, read_credentials
from brokerfl.common.private import NotOursError, private_directory, write_private
from brokerfl.wire.member import Member

_NAME = "operator"

#: The version of Redis that knows CLIENT SETINFO first; all of Valkey do.
_CLIENT_NAMES = (7, 2)

#: The user of whoever does not log in: nobody. It has all rights, because many servers, Redis 7 among them, check them
#: when they load their append-only file, and drop the transactions that it may not do (redis/redis issue 14541).
NOBODY_LOGS_IN = "user default off resetpass ~* &* +@all"


@dataclass(frozen=True)
class Secured:
    """What the server and its first operator need.

    Attributes:
        options: for the server's command line.
        tls: its certificate; None for plain text.
        credentials: the operator's file.
        member: the operator.
    """

    options: Sequence[str]
    tls: Certificate | None
    credentials: Path
    member: Member


def secure(
    data: Path,
    prefix: str,
    port: int,
    hosts: Sequence[str],
    own: tuple[Path, Path] | None,
    ca: Path | None,
    server: Path | None,
) -> Secured:
    """Make what is missing in the data directory.

    Args:
        data: the directory.
        prefix: of every key.
        port: on which the server listens.
        hosts: under which it is reached, the first in grants; none for this machine alone.
        own: certificate and key of the user's own.
        ca: the authority of that certificate; None for one that every system trusts.
        server: which one is started, with TLS; None for the bundled one, which has none.

    Raises:
        ConfigError: the directory or one of its files cannot be used.
        MissingExtra: cryptography is not installed.
    """
    try:
        private_directory(data)
    except NotOursError as error:
        raise ConfigError(f"{error.strerror}: name another directory with --data") from None
    except OSError as error:
        raise ConfigError(f"the data directory {data} cannot be used: {error.strerror}") from None
    path = data / f"{_NAME}.credentials"
    if not path.exists():
        keep(path, Credentials.new(Role.OPERATOR, _NAME, {}))
    credentials = read_credentials(path)
    member = _member(credentials, prefix)
    acl = data / "users.acl"
    if not acl.exists():
        rules = acl_of(Role.OPERATOR, Keys(prefix), supports_client_names=version_of(server) >= _CLIENT_NAMES)
        users = f"{NOBODY_LOGS_IN}\nuser {member.user} on #{member.passwords[-1]} {' '.join(rules)}\n"
        write_private(acl, users.encode())
    certificate, authority = _certificate(data, hosts, own, ca) if server is not None else (None, "")
    place = hosts[0] if hosts else "127.0.0.1"
    place = f"[{place}]" if ":" in place else place
    party = Party(_NAME, member.ed25519, member.x25519)
    url = f"redis{'' if server is None else 's'}://{place}:{port}"
    grant = Grant(Role.OPERATOR, _NAME, url, member.user, prefix, authority, operators=(party,))
    keep(grant_of(path), grant, replace=True)
    return Secured(("--aclfile", str(acl)), certificate, path, member)


def enter(secured: Secured) -> None:
    """Enter the first operator of a running server into its members, and give it its rights again: they may be older.

    Raises:
        RedisAuthError: it was revoked, or has another password now.
    """
    login = read_login(secured.credentials)
    grant, tls = login.grant, TLS(ca_data=login.grant.ca or None)
    provider = login.provider()
    connection = connect(grant.url, prefix=grant.prefix, tls=tls, check=False, credentials=provider, role=Role.OPERATOR)
    try:
        office, member = Office(connection, login.credentials.keys), secured.member
        known = office.find(member.role, member.name)
        office.trust(member if known is None else known.member, None)
    finally:
        connection.close()


def _member(credentials: Credentials, prefix: str) -> Member:
    keys = credentials.keys
    return Member(
        role=Role.OPERATOR,
        name=_NAME,
        user=user_of(prefix, Role.OPERATOR, _NAME),
        ed25519=keys.ed25519,
        x25519=keys.x25519,
        passwords=(sha256(credentials.passwords[-1].encode()).hexdigest(),),
        added_at=0.0,
        prefix=prefix,
    )


def _certificate(
    data: Path, hosts: Sequence[str], own: tuple[Path, Path] | None, ca: Path | None
) -> tuple[Certificate, str]:
    """Return the server's certificate, and the authority that others are to trust (PEM)."""
    if own is not None:
        return Certificate(*own), ca.read_text() if ca is not None else ""
    folder = data / "tls"
    if not (folder / CERT).exists():
        make_certificates(folder, (*hosts, "127.0.0.1", "localhost"))
    try:
        return Certificate(folder / CERT, folder / KEY), (folder / CA).read_text()
    except OSError as error:
        raise CredentialsError(f"{folder / CA} cannot be read: {error.strerror}") from None
