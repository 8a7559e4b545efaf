"""What an operator's command needs: who signs, and the grant that it answers with.

Owns how both are made of options. It must not know what is printed.
"""

from pathlib import Path

from brokerfl.broker.members import Office
from brokerfl.broker.rules import Role
from brokerfl.cli.options import RedisOptions
from brokerfl.common import ConfigError, CredentialsError
from brokerfl.common.credentials import Credentials, Grant, read_credentials
from brokerfl.wire.member import Member


def office_of(redis: RedisOptions, sign: Path | None = None) -> Office:
    """Return the operator whose credentials this command has; the first one signs for itself.

    Raises:
        CredentialsError: it has none, or those of somebody else.
    """
    login = redis.login
    if sign is not None and login is None:
        first = read_credentials(sign)
        check_role(first, Role.OPERATOR, sign)
        return Office(redis.connect(), first.keys)
    if login is None:
        raise CredentialsError("this needs the credentials of an operator, who signs for it: --credentials FILE")
    login.check_role(Role.OPERATOR)
    office = Office(redis.connect(), login.credentials.keys)
    office.enter(login.credentials)
    return office


def granted(office: Office, member: Member, redis: RedisOptions, url: str | None) -> Grant:
    """Return what a member is to know, which is no secret."""
    return Grant(
        role=member.role,
        name=member.name,
        url=_without_login(url or redis.url),
        user=member.user,
        prefix=member.prefix,
        ca=_authority(redis),
        node_id=str(member.node_id) if member.node_id else "",
        labels=dict(member.labels),
        realm=member.realm,
        owners=office.owners(member),
        operators=office.operators(),
    )


def _without_login(url: str) -> str:
    """Return a URL that can be sent.

    Raises:
        ConfigError: it has a login of Sentinels, which is a secret of its own.
    """
    scheme, _, rest = url.partition("://")
    if "password=" in rest:
        raise ConfigError(
            "the URL has a password among its parameters, which cannot be sent: give another one with --url"
        )
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _authority(redis: RedisOptions) -> str:
    if redis.tls.ca_cert is not None:
        return Path(redis.tls.ca_cert).read_text()
    return redis.tls.ca_data or ""


def check_role(credentials: Credentials, role: Role, path: Path) -> None:
    """Check whose credentials a file has.

    Raises:
        CredentialsError: they are of another role.
    """
    if credentials.role != role:
        raise CredentialsError(f"{path} is of the {credentials.role} {credentials.name}, not of a {role.value}")
