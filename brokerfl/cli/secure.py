"""What a Redis needs at which every party has a login of its own, and `brokerfl secure`, which makes it.

Owns the files in its directory, which are made once and kept. It must not know how the server runs.

    users.acl             who may do what; the server rewrites it
    operator.credentials  the first operator, and beside it its grant
    tls/                  authority and certificate, unless the user has others
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from brokerfl.broker.connection import TLS, connect
from brokerfl.broker.embedded import Certificate
from brokerfl.broker.keys import DEFAULT_PREFIX, Keys
from brokerfl.broker.members import Office, first_operator
from brokerfl.broker.rules import Role, acl_of
from brokerfl.cli.certs import CA, CERT, KEY, make_certificates
from brokerfl.cli.exits import Command
from brokerfl.cli.login import read_login
from brokerfl.cli.options import FilePath, Text
from brokerfl.cli.tables import show_text
from brokerfl.common import ConfigError, CredentialsError, RedisAuthError
from brokerfl.common.credentials import Credentials, Grant, Party, grant_of, keep, read_credentials
from brokerfl.common.private import NotOursError, private_directory, write_private

_NAME = "operator"

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
        url: where others find the server.
    """

    options: tuple[str, str]
    tls: Certificate | None
    credentials: Path
    url: str


def secure(
    data: Path,
    prefix: str,
    port: int,
    hosts: Sequence[str],
    own: tuple[Path, Path] | None,
    ca: Path | None,
    *,
    tls: bool,
    names: bool,
) -> Secured:
    """Make what is missing in the data directory.

    Args:
        data: the directory.
        prefix: of every key.
        port: on which the server listens.
        hosts: under which it is reached, the first in grants; none for this machine alone.
        own: certificate and key of the user's own.
        ca: the authority of that certificate; None for one that every system trusts.
        tls: whether the server speaks TLS.
        names: whether it knows CLIENT SETINFO.

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
    member = first_operator(credentials, prefix)
    acl = data / "users.acl"
    if not acl.exists():
        rules = acl_of(Role.OPERATOR, Keys(prefix), supports_client_names=names)
        users = f"{NOBODY_LOGS_IN}\nuser {member.user} on #{member.passwords[-1]} {' '.join(rules)}\n"
        write_private(acl, users.encode())
    certificate, authority = _certificate(data, hosts, own, ca) if tls else (None, "")
    place = hosts[0] if hosts else "127.0.0.1"
    place = f"[{place}]" if ":" in place else place
    party = Party(_NAME, member.ed25519, member.x25519)
    url = f"redis{'s' if tls else ''}://{place}:{port}"
    grant = Grant(Role.OPERATOR, _NAME, url, member.user, prefix, authority, operators=(party,))
    keep(grant_of(path), grant, replace=True)
    return Secured(("--aclfile", str(acl)), certificate, path, url)


def enter(secured: Secured) -> bool:
    """Enter the first operator of a running server into its members, and give it its rights again: they may be older.

    Returns:
        False if it was revoked: there are others.
    """
    login = read_login(secured.credentials)
    grant, tls = login.grant, TLS(ca_data=login.grant.ca or None)
    provider = login.provider()
    connection = connect(grant.url, prefix=grant.prefix, tls=tls, check=False, credentials=provider, role=Role.OPERATOR)
    try:
        office = Office(connection, login.credentials.keys)
        office.trust(office.enter(login.credentials), None)
        return True
    except RedisAuthError:
        return False
    finally:
        connection.close()


@click.command("secure", cls=Command)
@click.argument("folder", metavar="DIR", type=FilePath(file_okay=False, path_type=Path))
@click.argument("hosts", metavar="HOST...", type=Text(), nargs=-1, required=True)
@click.option("--port", default=6379, show_default=True, type=click.IntRange(1, 65535), help="TLS port of the Redis.")
@click.option(
    "--prefix",
    envvar="BROKERFL_PREFIX",
    default=DEFAULT_PREFIX,
    show_default=True,
    help="Prefix of every key in Redis.",
)
def secure_command(folder: Path, hosts: tuple[str, ...], port: int, prefix: str) -> None:
    """Make in DIR what a Redis of your own needs so that every party has a login of its own.

    That is an ACL file, a certificate for each HOST, under which the Redis is reached, and the credentials of the first
    operator. What is there stays. It starts nothing: for a server on this machine, see `brokerfl up --secure`.
    """
    made = secure(folder, prefix, port, hosts, None, None, tls=True, names=False)
    assert made.tls is not None, "it was asked for"
    lines = {**made.tls.options(port), **dict([made.options])}
    show_text(
        "\n".join(f"{name.removeprefix('--')} {value}" for name, value in lines.items())
        + f"\n# These lines are for redis.conf. --credentials {made.credentials} is the first operator."
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
