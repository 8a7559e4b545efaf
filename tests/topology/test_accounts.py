"""Users on several servers: ACLs are not replicated, so each primary and each replica is told."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from brokerfl.broker.accounts import close_user, delete_user, set_user
from brokerfl.broker.connection import Connection, connect
from brokerfl.broker.credentials import SeveralPasswords
from brokerfl.broker.keys import Keys
from brokerfl.broker.members import Office, user_of
from brokerfl.broker.nodes import Registration
from brokerfl.broker.rules import Role
from brokerfl.common import RecordSet, RedisAuthError, RedisUnreachable
from brokerfl.common.credentials import Credentials
from brokerfl.common.keypair import KeyPairs
from tests.apps import driving, echo_app
from tests.conftest import Backend
from tests.stage import layer, model, serving, to_all
from tests.topology.fleets import ClusterFleet, Fleet, SentinelFleet
from tests.topology.lab import PREFIX

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module", params=["sentinel", "cluster"])
def several(request: pytest.FixtureRequest, redis_binary: Path) -> Iterator[Fleet]:
    """A primary and two replicas with Sentinels, and a Cluster whose primaries have a replica each."""
    made = SentinelFleet(redis_binary) if request.param == "sentinel" else ClusterFleet(redis_binary, replicas=1)
    with made as fleet:
        yield fleet


def rules(names: bool) -> list[str]:
    """What ACL SETUSER takes."""
    return ["on", ">secret", "~*", "+@all", *(["+client|setinfo"] if names else [])]


def users(fleet: Fleet) -> dict[int, Any]:
    """What each server knows of the user."""
    return {port: fleet.client(port).acl_getuser("joe") for port in fleet._living()}


def test_every_server_is_told(several: Fleet) -> None:
    """Also replicas, which may become primaries, and on a server that does not know CLIENT SETINFO."""
    connection = connect(several.url, prefix=PREFIX)
    told = set_user(connection, "joe", rules)
    known = users(several)
    assert told.servers == len(known) >= 3
    assert len(told.forgetful) == told.servers  # they have no ACL file
    assert all("on" in user["flags"] and len(user["passwords"]) == 1 for user in known.values())
    joe = connect(several.url.replace("//", "//joe:secret@"), prefix=PREFIX)
    assert joe.redis.ping()
    close_user(connection, "joe")
    assert all("off" in user["flags"] and user["passwords"] == [] for user in users(several).values())
    with pytest.raises(RedisAuthError):
        connect(several.url.replace("//", "//joe:secret@"), prefix=PREFIX)
    delete_user(connection, "joe")
    assert set(users(several).values()) == {None}
    _close(connection, joe)


def test_a_server_that_does_not_answer_is_named(redis_binary: Path) -> None:
    """The others are told all the same, and it is done again later."""
    with ClusterFleet(redis_binary, replicas=1) as fleet:
        connection = connect(fleet.url, prefix=PREFIX)
        lost = _a_replica(fleet)
        fleet.kill(lost)
        with pytest.raises(RedisUnreachable, match=rf"not all servers were told: 127\.0\.0\.1:{lost} .*Do it again"):
            set_user(connection, "joe", rules)
        assert all("on" in user["flags"] for user in users(fleet).values())
        _close(connection)


def test_a_node_has_a_login_of_its_own_on_all_of_them(several: Fleet) -> None:
    """It is added with its rights everywhere, registers with them, and is cut off wherever it was connected."""
    admin = connect(several.url, prefix=PREFIX)
    office = Office(admin, KeyPairs.new())
    owner, site = Credentials.new("server", "alice", {}), Credentials.new("node", "n1", {"site": "berlin"})
    for each in (owner, site):
        office.add(each.request(), None)
    [alice] = office.owners(office.records()[-1].member)
    assert [(each.member.name, each.is_genuine) for each in office.records()] == [("alice", True), ("n1", True)]
    user, password = user_of(PREFIX, "node", "n1"), site.passwords[0]
    login = SeveralPasswords(user, lambda: ("wrong", password))
    node = connect(several.url, prefix=PREFIX, credentials=login, role=Role.NODE, realms=(alice.realm,))
    registration = Registration(node, "n1")
    registration.register()
    assert registration.renew()
    admin.keys = Keys(PREFIX, ("", alice.realm))
    assert several.scan(f"*{{{registration.node_id}}}*")
    assert office.revoke("node", "n1").servers == len([*several._living()])
    with pytest.raises((RedisAuthError, RedisUnreachable)):
        registration.renew()
    assert not several.scan(f"*{{{registration.node_id}}}*")
    assert [record.member.name for record in office.records()] == ["alice"]
    _close(admin, node)


def test_a_run_of_users_with_rights(several: Fleet) -> None:
    """All of them have the same rights on every server, and a run with large contents needs no other one anywhere."""
    admin = connect(several.url, prefix=PREFIX)
    office, names = Office(admin, KeyPairs.new()), ("n1", "n2")
    parties = {"lab": Credentials.new("server", "lab", {}), **{n: Credentials.new("node", n, {}) for n in names}}
    for party in parties.values():
        office.add(party.request(), None)
    found = office.find("node", "n1")
    assert found is not None
    [lab] = [party for party in office.owners(found.member) if party.name == "lab"]
    users = {user_of(PREFIX, party.role, name) for name, party in parties.items()}
    for port in several._living():
        several.client(port).execute_command("ACL", "LOG", "RESET")
    known = [rights(several.client(port)) for port in several._living()]
    assert known[0].keys() >= users
    assert all(each == known[0] for each in known)

    def of(name: str, role: Role) -> Backend:
        login = SeveralPasswords(user_of(PREFIX, role, name), lambda: tuple(parties[name].passwords))
        options = {"credentials": login, "role": role, "realms": (lab.realm,)}
        return Backend(name, lambda: connect(several.url, prefix=PREFIX, **options), admin.redis, several.url)

    with ExitStack() as stack:
        nodes = [stack.enter_context(serving(of(name, Role.NODE), echo_app(), name=name)) for name in names]
        driver = stack.enter_context(driving(of("lab", Role.SERVER)))
        assert str(driver.run.run_id).startswith(lab.realm)
        for content in (RecordSet(), large()):
            replies = to_all(driver, [node.node_id for node in nodes], content)
            assert [reply.content for reply in replies] == [content] * 2
    refused = [entry for port in several._living() for entry in several.client(port).acl_log()]
    assert refused == []
    for name, party in parties.items():
        office.revoke(party.role, name)
    assert not any(users & {*several.client(port).acl_users()} for port in several._living())
    _close(admin)


def rights(server: Any) -> dict[str, list[str]]:
    """The rights of each user as a server lists them, in an order that is not its own."""
    listed = (re.findall("[^() ]+", each) for each in server.acl_list() if PREFIX in each)
    return {user: sorted(words) for _, user, *words in listed}


def large() -> RecordSet:
    """A content in chunks."""
    return model(layer(1, 200_000))


def _a_replica(fleet: Fleet) -> int:
    primaries = set(fleet.primaries())
    return next(port for port in fleet._living() if port not in primaries)


def _close(*connections: Connection) -> None:
    for connection in connections:
        connection.close()
