"""What a checkup finds, what is said of a server's settings when it is connected, and what sockets are called there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from brokerfl.broker.checkup import Finding, Need, Status, look_over
from brokerfl.broker.connection import Connection, connect
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.broker.nodes import Registration
from brokerfl.server import Driver
from tests.conftest import PREFIX, Backend
from tests.stage import silent, transact

#: TLS is looked at in the URL.
WITHOUT = ("redis-tls",)

MIB = 1024 * 1024


@pytest.fixture
def real(backend: Backend) -> Iterator[Backend]:
    """The backends that say what they are; at the end with their settings of before."""
    if not backend.is_real:
        pytest.skip("fakeredis has no INFO")
    yield backend
    for name, value in (("maxmemory", 0), ("maxmemory-policy", "noeviction")):
        backend.admin.config_set(name, value)


def found(connection: Connection, check: str, need: Need | None = None) -> Finding:
    """What a checkup finds in one respect, at the first primary."""
    return next(each for each in look_over(connection, need) if each.check.partition(" ")[0] == check)


def test_a_checkup_changes_nothing_and_finds_no_problem(backend: Backend) -> None:
    """Everything is looked at, and no key is another one afterwards."""
    silent(backend)
    before = {key: backend.admin.type(key) for key in backend.admin.scan_iter()}
    findings = look_over(backend.by_hand())
    assert {key: backend.admin.type(key) for key in backend.admin.scan_iter()} == before
    assert {each.check.partition(" ")[0] for each in findings} == {
        "server", "tls", "latency", "clocks", "persistence", "eviction", "replicas", "memory", "permissions",
        "users", "prefix", "nodes",
    }  # fmt: skip
    assert [each for each in findings if each.status is Status.PROBLEM] == []
    assert found(backend.by_hand(), "nodes").found == "1 nodes: 1 online, 0 offline"
    assert all(
        each.advice for each in findings if each.status is not Status.OK and "may not be asked" not in each.found
    )


def test_memory_is_compared_with_what_is_needed(real: Backend) -> None:
    """Runs times one and their nodes times the model."""
    connection = real.connect()
    real.admin.config_set("maxmemory", 100 * MIB)
    share = len(connection.primaries())
    assert found(connection, "memory").status is Status.OK
    assert found(connection, "memory", Need(10 * MIB * share, 7)).status is Status.OK
    assert found(connection, "memory", Need(10 * MIB * share, 8)).status is Status.WARNING
    assert found(connection, "memory", Need(10 * MIB * share, 9)).status is Status.PROBLEM
    assert found(connection, "memory", Need(10 * MIB * share, 4, runs=2)).status is Status.PROBLEM
    real.admin.config_set("maxmemory", 1)
    assert found(connection, "memory").status is Status.PROBLEM


def test_eviction_is_a_problem_if_there_is_a_limit(real: Backend) -> None:
    """Every key has a lifetime, so each policy deletes messages."""
    real.admin.config_set("maxmemory-policy", "volatile-lru")
    assert found(real.connect(), "eviction").status is Status.WARNING
    real.admin.config_set("maxmemory", 100 * MIB)
    assert found(real.connect(), "eviction").status is Status.PROBLEM


def test_what_a_user_may_not_do_is_named(backend: Backend, real: Backend) -> None:
    """Only that."""
    if real.is_found:
        pytest.skip("one server is enough")
    connection = real.by_hand()
    real.admin.execute_command("ACL", "SETUSER", "default", "-xadd", "-hset")
    try:
        refused = found(connection, "permissions")
    finally:
        real.admin.execute_command("ACL", "SETUSER", "default", "+@all")
    assert refused.status is Status.PROBLEM
    assert "may not use HSET, XADD under the prefix 'test'" in refused.found


def test_users_that_a_restart_forgets(real: Backend) -> None:
    """Without a file, who was added or revoked; without rights of ``default``, every transaction."""
    if real.is_found:
        pytest.skip("one server is enough")
    connection, former = real.by_hand(), real.admin.config_get("appendonly")["appendonly"]
    assert found(connection, "users").status is Status.OK
    real.admin.execute_command("ACL", "SETUSER", f"{PREFIX}:node:joe", "on")
    try:
        forgotten = found(connection, "users")
        assert forgotten.status is Status.PROBLEM
        assert "no ACL file: a restart of Redis forgets" in forgotten.found
        real.admin.execute_command("ACL", "SETUSER", "default", "-xadd")
        real.admin.config_set("appendonly", "yes")
        assert "the rights of the user default" in found(connection, "users").found
        real.admin.config_set("appendonly", "no")
        assert "no ACL file" in found(connection, "users").found
    finally:
        real.admin.execute_command("ACL", "SETUSER", "default", "+@all")
        real.admin.config_set("appendonly", former)
        real.admin.acl_deluser(f"{PREFIX}:node:joe")


def test_a_prefix_that_nobody_uses(backend: Backend) -> None:
    """It may be the wrong one."""
    assert found(backend.by_hand(), "prefix").status is Status.WARNING
    silent(backend)
    assert found(backend.by_hand(), "prefix").status is Status.OK


# At connect.


@pytest.fixture
def own(redis_binary: Path, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server as somebody else starts it, without a file."""
    with EmbeddedServer(binary=redis_binary, options=("--dir", str(tmp_path))) as server:
        yield server


def test_a_server_that_keeps_nothing_is_warned_about(own: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    """Once a connect, with what to do; not if it makes snapshots or appends."""
    connection = connect(own.url, prefix=PREFIX)
    [record] = caplog.records
    assert "keeps nothing on disk, so a restart of it loses all runs: set appendonly yes" in record.getMessage()
    for setting in (("save", "60 1"), ("appendonly", "yes")):
        connection.redis.config_set(*setting)
        connect(own.url, prefix=PREFIX)
    assert len(caplog.records) == 1
    connection.redis.config_set("appendonly", "no")
    connection.redis.execute_command("ACL", "SETUSER", "default", "-config")
    connect(own.url, prefix=PREFIX)
    assert "no append-only file, so a restart" in caplog.records[1].getMessage()


def test_a_server_that_brokerfl_started_is_not(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps nothing on purpose; and there is nothing else to say of it."""
    backend.connect()
    assert caplog.records == []


def test_a_server_with_little_memory_is_warned_about(real: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """When nine tenths are in use."""
    real.admin.config_set("maxmemory", 1)
    real.connect()
    assert "too little memory" in caplog.records[0].getMessage()


def named(backend: Backend, name: str) -> int:
    """How many sockets are called so."""
    return sum(client["name"] == name for client in backend.admin.client_list())


def test_sockets_have_a_name(real: Backend) -> None:
    """Those of a node that of the node, those of a ServerApp that of the run; blanks and other letters are gone."""
    connections = [real.connect(), real.connect()]
    Registration(connections[0], "site 7 ü").register()
    driver = Driver(connections[1], "server:app")
    transact(driver)
    assert named(real, "brokerfl-node:site_7__") > 0
    before = 0 if real.has_rights else 1  # who becomes another user connects anew
    assert named(real, f"brokerfl-server:{driver.run.run_id}") > before, "those that were there, and those of messages"
    driver.end()


def test_a_server_that_refuses_names_is_served(real: Backend) -> None:
    """An ACL may forbid CLIENT SETNAME."""
    if real.is_found:
        pytest.skip("one server is enough")
    real.admin.execute_command("ACL", "SETUSER", "default", "-client|setname")
    try:
        with pytest.raises(ResponseError):
            real.admin.client_setname("x")
        connection = connect(real.url, prefix=PREFIX, tls=real.tls, name="brokerfl:test")
        connection.introduce("brokerfl:another")
        assert connection.redis.ping()
        assert connection.losses == 0
    finally:
        real.admin.execute_command("ACL", "SETUSER", "default", "+@all")
