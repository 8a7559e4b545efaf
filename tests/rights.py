"""Users with rights: every node and every ServerApp of a test logs in as a user of its own, and all else as operator.

The rules are those of `brokerfl.broker.rules`, so what brokerfl sends without a rule is refused, and in the ACL LOG.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis as redis_py
from redis.credentials import CredentialProvider

from brokerfl.broker.client import Clients
from brokerfl.broker.connection import TLS, Connection, connect
from brokerfl.broker.identity import ensure_identity
from brokerfl.broker.keys import Keys, parse_id
from brokerfl.broker.nodes import node_id_of
from brokerfl.broker.rules import Role, acl_of
from brokerfl.broker.servers import OneServer
from brokerfl.broker.url import parse_url


class Login(CredentialProvider):
    """A user without a password."""

    def __init__(self, user: str) -> None:
        self._user = user

    def get_credentials(self) -> tuple[str, str]:
        """Return the user's name, and what is no password."""
        return self._user, "nothing"


class Actors:
    """Makes connections to one server, each of which has the rights of who introduces itself there.

    Args:
        url: of the server, where the user ``default`` may do anything.
        prefix: the start of every key.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self.url, self._keys = url, Keys(prefix)
        self.admin = connect(url, prefix=prefix).redis
        self._knows_names = "valkey_version" in self.admin.info("server")
        for role in (Role.OPERATOR, Role.SERVER, Role.OBSERVER):
            self.add(role.value, role)

    def add(self, user: str, role: Role, **options: Any) -> None:
        """Make a user, or give it these rights."""
        rules = acl_of(role, self._keys, supports_client_names=self._knows_names, **options)
        self.admin.execute_command("ACL", "SETUSER", user, "reset", "on", "nopass", *rules)

    def connect_as(self, user: str, role: Role | None, realms: tuple[str, ...] = ("",)) -> Connection:
        """Return a connection of this user, who has to do with these realms."""
        prefix = self._keys.prefix
        return connect(self.url, prefix=prefix, credentials=Login(user), role=role, realms=realms)

    def server_in(self, realm: str) -> Connection:
        """Return a connection of a ServerApp's user who has a realm."""
        self._make_identity()
        self.add(f"server-{realm}", Role.SERVER, realm=realm)
        return self.connect_as(f"server-{realm}", Role.SERVER, (realm,))

    def node_that_trusts(self, name: str, *realms: str) -> Connection:
        """Return a connection of the user of a node that serves only runs of these realms."""
        user = self._registered(name, realms)
        return self.connect_as(user, Role.NODE, realms)

    @contextmanager
    def socket(self) -> Iterator[Callable[..., Any]]:
        """Yield what sends a command, without what redis-py makes of its answer."""
        sockets = connect(self.url, prefix=self._keys.prefix, check=False).sockets
        yield lambda *command: sockets.exchange([command])[0]
        sockets.close()

    def connect(self) -> Connection:
        """Return a connection of the operator, until a node or a ServerApp says that it is its own."""
        return self._until_introduced(self.connect_as(Role.OPERATOR.value, Role.OPERATOR))

    def by_hand(self) -> Connection:
        """Return a connection of somebody who may do anything, until a node or a ServerApp says that it is its own."""
        return self._until_introduced(connect(self.url, prefix=self._keys.prefix))

    def _until_introduced(self, connection: Connection) -> Connection:
        introduce = connection.introduce

        def introduced(name: str) -> None:
            kind, _, who = name.partition(":")
            if kind == "brokerfl-node":
                self._become(connection, self._registered(who), Role.NODE)
            elif kind == "brokerfl-server":
                self._make_identity()
                self._become(connection, Role.SERVER.value, Role.SERVER)
            introduce(name)

        connection.introduce = introduced  # type: ignore[method-assign]
        return connection

    def _registered(self, who: str, realms: tuple[str, ...] = ()) -> str:
        """Return the user of a node, which an operator made and registered."""
        number = parse_id(who.encode()) or 0
        node_id = number if number > 2**32 else node_id_of(self._keys.prefix, who)  # some names are small numbers
        user = f"node-{node_id}"
        self.add(user, Role.NODE, node_id=node_id, realms=realms)
        self.admin.sadd(self._keys.nodes, str(node_id))
        self._make_identity()
        return user

    def _make_identity(self) -> None:
        """Make the data set, as an operator does before anybody else comes."""
        ensure_identity(connect(self.url, prefix=self._keys.prefix, check=False))

    def _become(self, connection: Connection, user: str, role: Role) -> None:
        """What the connection sends from now on is sent by another user."""
        if connection.role is role:
            return
        connection.close()
        clients = Clients(parse_url(self.url, insecure=False), TLS(), Login(user), "")
        connection._clients, connection._servers, connection.role = clients, OneServer.named_by(clients), role
        connection._servers.lost = connection._count_loss


def refusals(admin: redis_py.Redis) -> list[str]:
    """Return what users with rights were refused since the log was emptied: who wanted to do what."""
    refused = [[_text(entry[key]) for key in ("username", "reason", "object", "context")] for entry in admin.acl_log()]
    return [" ".join(each) for each in refused if each[0] != "default"]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
