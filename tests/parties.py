"""Parties with keys: an owner of runs and nodes, and how the tests make one of them another."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from brokerfl.broker.connection import Connection
from brokerfl.broker.enrolment import enrol
from brokerfl.broker.identity import ensure_identity
from brokerfl.broker.members import Office
from brokerfl.broker.nodes import node_id_of
from brokerfl.client import ClientApp
from brokerfl.client.node import Node
from brokerfl.common import crypto
from brokerfl.common.credentials import Credentials, Grant, Party, grant_of, keep
from brokerfl.common.identity import Identity, Owner, PublicKeys, Trusted
from brokerfl.common.keypair import KeyPairs, to_text
from brokerfl.server import Driver
from brokerfl.wire.member import Member
from brokerfl.wire.protection import Protected
from tests.apps import driving, echo_app
from tests.conftest import PREFIX, Backend
from tests.stage import serving


def new_identity(name: str) -> Identity:
    """An identity with random keys."""
    return Identity(name, secrets.token_bytes(32), secrets.token_bytes(32))


def public_of(identity: Identity) -> PublicKeys:
    """Its public keys."""
    return PublicKeys(crypto.signing_public(identity.signing), crypto.exchange_public(identity.exchange))


class Parties:
    """An owner of runs, and nodes by name, who trust each other.

    Args:
        nodes: their names.
        seals: runs are sealed, too.
    """

    def __init__(self, *nodes: str, seals: bool = False) -> None:
        self.seals = seals
        self.owner = new_identity("lab")
        self.nodes = {name: new_identity(name) for name in nodes}
        self.owners = {"lab": Owner("lab", public_of(self.owner).signing)}
        self.members = {self.id_of(name): public_of(identity) for name, identity in self.nodes.items()}

    @staticmethod
    def id_of(name: str) -> int:
        return node_id_of(PREFIX, name)

    @property
    def of_owner(self) -> Protected:
        """What the ServerApp is started with."""
        return Protected(self.owner, Trusted(nodes=self.members), seals=self.seals)

    def of_node(self, name: str, *, seals: bool | None = None) -> Protected:
        """What a node is started with."""
        return Protected(self.nodes[name], Trusted(owners=self.owners), seals=self.seals if seals is None else seals)

    def write(self, folder: Path, url: str, connection: Connection) -> None:
        """Write credentials and grant of each, and let an operator add the nodes to the list of members.

        All log in as the user ``default``, whom a server without users lets in with any password.
        """
        office = Office(connection, KeyPairs.new())
        operators = (Party("op", office.keys.ed25519, office.keys.x25519),)
        owners = (Party("lab", *map(to_text, public_of(self.owner))),)
        for role, identity in (("server", self.owner), *(("node", each) for each in self.nodes.values())):
            path, name = folder / f"{identity.name}.credentials", identity.name
            keep(path, Credentials(role, name, ("x",), to_text(identity.signing), to_text(identity.exchange)))
            more = {"owners": owners, "node_id": str(self.id_of(name))} if role == "node" else {}
            keep(grant_of(path), Grant(role, name, url, "default", PREFIX, operators=operators, **more))  # type: ignore[arg-type]
            if role == "node":
                ensure_identity(connection)
                enrol(connection, self.id_of(name), name, {})
                keys = map(to_text, self.members[self.id_of(name)])
                office.note(Member(role, name, "default", *keys, ("0" * 64,), 1.0, PREFIX, self.id_of(name)))

    @contextmanager
    def serving(
        self, backend: Backend, app: Callable[[], ClientApp] = echo_app, **options: Any
    ) -> Iterator[dict[str, Node]]:
        """All nodes serve."""
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(serving(backend, app(), name=name, protection=self.of_node(name), **options))
                for name in self.nodes
            }

    @contextmanager
    def driving(self, backend: Backend, **options: Any) -> Iterator[Driver]:
        """A run of the owner."""
        with driving(backend, protection=self.of_owner, **options) as driver:
            yield driver
