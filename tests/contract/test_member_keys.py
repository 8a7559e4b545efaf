"""A ServerApp knows the keys of the nodes that an operator added whom it believes, and of no others."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from brokerfl.broker import member_keys
from brokerfl.broker.member_keys import NodeKeys
from brokerfl.broker.members import Office
from brokerfl.common.keypair import KeyPairs, to_text
from brokerfl.wire.member import Member, encode_member
from tests.apps import Clock
from tests.conftest import PREFIX, Backend
from tests.parties import new_identity, public_of

#: Neither changes anything here.
WITHOUT = ("fakeredis", "redis-tls")

KEYS = public_of(new_identity("a"))
NODE = Member("node", "a", "test:node:a", *map(to_text, KEYS), ("0" * 64,), 1.0, PREFIX, 5)


@pytest.fixture
def office(backend: Backend) -> Iterator[Office]:
    """An operator, who has added one node."""
    made = Office(backend.connect(), KeyPairs.new())
    made.note(NODE)
    yield made
    backend.admin.delete(made.connection.keys.members)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Goes on when it is told to."""
    made = Clock()
    monkeypatch.setattr(member_keys, "time", made)
    return made


def test_keys_are_those_that_an_operator_signed(backend: Backend, office: Office) -> None:
    """Of nodes under this prefix; not what was changed, or signed by somebody else."""
    key = office.connection.keys.members
    assert NodeKeys(office.connection, [office.keys.ed25519])[5] == KEYS
    forger = KeyPairs.new()
    record = backend.admin.hget(key, "node/a")
    for forged in (
        encode_member(NODE, forger),
        encode_member(replace(NODE, role="server"), office.keys),
        encode_member(replace(NODE, prefix="other"), office.keys),
        encode_member(replace(NODE, name="b"), office.keys),
        bytes((*record[:-1], record[-1] ^ 1)),
        b"junk",
    ):
        backend.admin.hset(key, "node/a", forged)
        assert 5 not in NodeKeys(office.connection, [office.keys.ed25519])
    backend.admin.hset(key, "node/a", record)
    assert 5 not in NodeKeys(office.connection, [forger.ed25519])
    assert 5 in NodeKeys(office.connection, [forger.ed25519, office.keys.ed25519])


def test_the_list_is_read_again(backend: Backend, office: Office, clock: Clock) -> None:
    """A new node is found within a second, and one that was revoked is forgotten within a minute."""
    keys = NodeKeys(office.connection, [office.keys.ed25519])
    assert keys.get(6) is None
    office.note(replace(NODE, name="b", node_id=6))
    assert keys.get(6) is None
    clock.now += 1.1
    assert keys.get(6) == KEYS
    backend.admin.hdel(office.connection.keys.members, "node/b")
    assert keys.get(6) == KEYS
    clock.now += 60.1
    assert (keys.get(6), keys.get(5)) == (None, KEYS)
