"""Options of what is signed and sealed. Owns their names, and whose keys they take from credentials and grant."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from brokerfl.broker.connection import Connection
from brokerfl.broker.member_keys import NodeKeys
from brokerfl.cli.login import Login
from brokerfl.common import ConfigError
from brokerfl.common.identity import KEY_BYTES, Identity, Owner, Trusted
from brokerfl.common.keypair import check_cryptography, to_bytes
from brokerfl.wire.guard import UNPROTECTED, Protection

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Wish:
    """What is to be signed and sealed, as given by the user."""

    signs: bool
    seals: bool

    def check(self, login: Login | None) -> None:
        """Check that there are keys for it.

        Raises:
            ConfigError: there are no credentials.
            MissingExtra: cryptography is not installed.
        """
        if not (self.signs or self.seals):
            return
        if login is None:
            option = "--seal" if self.seals else "--sign"
            raise ConfigError(f"{option} needs keys: --credentials FILE, which `brokerfl node request` makes")
        check_cryptography()

    def granted(self, login: Login | None, connection: Connection) -> Protection:
        """Return what protects: with the keys of the credentials, for whom the grant names.

        A node trusts the owners in its grant; a ServerApp the nodes in the list of members, of which it believes the
        operators in its grant.

        Raises:
            ConfigError: a key is none.
        """
        if login is None or not (self.signs or self.seals):
            return UNPROTECTED
        from brokerfl.wire.protection import Protected

        keys, grant = login.credentials.keys, login.grant
        identity = Identity(login.credentials.name, *(_raw(key) for key in (keys.signing, keys.sealing)))
        trusted = Trusted(
            owners={owner.name: Owner(owner.name, _raw(owner.ed25519), owner.realm) for owner in grant.owners},
            nodes=NodeKeys(connection, [operator.ed25519 for operator in grant.operators]),
        )
        return Protected(identity, trusted, seals=self.seals)


def _raw(key: str) -> bytes:
    return to_bytes(key, KEY_BYTES, "a key of the credentials or of the grant")


def protection_options(function: Function) -> Function:
    """Add --sign and --seal to a command, which receives them as ``wish``."""

    @wraps(function)
    def wrapper(*args: Any, sign: bool, seal: bool, **options: Any) -> Any:
        return function(*args, wish=Wish(sign, seal), **options)

    for option in (
        click.option(
            "--seal",
            is_flag=True,
            envvar="BROKERFL_SEAL",
            help="Like --sign, and seal what runs send, learn and save, so that whoever reads Redis learns nothing "
            "of it. A node serves only sealed runs then.",
        ),
        click.option(
            "--sign",
            is_flag=True,
            envvar="BROKERFL_SIGN",
            help="Sign what is sent with the keys of --credentials, and accept only what is signed by whom its grant "
            "names.",
        ),
    ):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]
