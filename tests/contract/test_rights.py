"""Rights: a server lets each role do what the rules say and nothing else, whatever its user tries."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from typing import Any

import pytest
import redis as redis_py
from redis.exceptions import NoPermissionError, ResponseError

from brokerfl.broker.checkup import Status, look_over
from brokerfl.broker.connection import Connection
from brokerfl.broker.ending import stop_run
from brokerfl.broker.keys import RUN_DIGITS, Keys
from brokerfl.broker.nodes import node_id_of
from brokerfl.broker.permissions import SAMPLES
from brokerfl.broker.rules import COMMON, RIGHTS, WITHOUT_KEYS, Right, Role, sample
from brokerfl.broker.runs import runs_of
from brokerfl.broker.seen import look
from brokerfl.broker.stream import LAST
from brokerfl.server import Driver
from tests import conftest
from tests.apps import echo_app, number, number_in, runs_seen
from tests.conftest import PREFIX, Backend
from tests.rights import Actors, refusals
from tests.stage import serving, start

pytestmark = pytest.mark.timeout(120)

KEYS = Keys(PREFIX)

#: Every key there is, as the rules write it.
KINDS = (
    "P:id", "P:probe:{P:id}", "P:nodes", "P:runs[:r]", "P:{N}:info", "P:{N}:lease", "P:{N}:ctl[:r]", "P:{N}:runs[:r]",
    "P:{N}:data:R",
    "P:{run:R}:in:N", "P:{run:R}:out:N", "P:{run:R}:meta", "P:{run:R}:owner", "P:{run:R}:lease", "P:{run:R}:ledger",
    "P:{run:R}:groups", "P:{run:R}:nodes", "P:{run:R}:blobs", "P:{run:R}:context", "P:{run:R}:status",
    "P:{run:R}:events", "P:{run:R}:log", "P:{run:R}:past", "P:{run:R}:curves", "P:bell:{run:R}", "P:blob:R:c:{D}",
)  # fmt: skip

#: Keys of another federation, and such as nobody has.
NOBODYS = ("other", f"{PREFIX}x:id", f"x{PREFIX}:id", f"{PREFIX}:idx", f"{PREFIX}:{{5}}", f"{PREFIX}:{{run:x}}:meta")

#: What runs of no realm share.
OF_NO_REALM = (f"{PREFIX}:runs", f"{PREFIX}:{{6}}:ctl", f"{PREFIX}:{{6}}:runs", f"{PREFIX}:{{5}}:runs")

#: Keys of other nodes that look like those of node 5.
ALIKE = (f"{PREFIX}:{{15}}:lease", f"{PREFIX}:{{51}}:lease", f"{PREFIX}:{{run:1234000000000000000}}:in:15")

OWN, OTHER = "1234", "2345"
ME, SOMEBODY = 5, 6


@pytest.fixture(params=conftest.RIGHTS)
def actors(request: pytest.FixtureRequest) -> Actors:
    """A server with a user for everybody, empty."""
    made: Actors = request.getfixturevalue(request.param.replace("-", "_"))
    made.admin.flushall()
    made.add("thief-node", Role.NODE, node_id=ME, realms=(OWN,))
    made.add("thief-server", Role.SERVER, realm=OWN)
    return made


USERS = {
    "thief-node": Role.NODE,
    "thief-server": Role.SERVER,
    "observer": Role.OBSERVER,
    "operator": Role.OPERATOR,
}


def is_allowed(role: Role, command: str, kind: str, *, mine: bool, trusted: bool) -> bool:
    """What the rules say: ``mine`` is the key's node, ``trusted`` its realm."""

    def fits(right: Right, key: str) -> bool:
        return (
            fnmatchcase(kind, key.replace("[", "[[]"))
            and (mine or role is not Role.NODE or "N" not in kind)
            and (trusted or role not in (Role.NODE, Role.SERVER) or not {"R", "r"} & {*re.findall("[a-zA-Z]+", kind)})
        )

    return any(
        right.role is role and command in right.commands and any(fits(right, key) for key in right.keys)
        for right in RIGHTS
    )


def tried(admin: redis_py.Redis, user: str, commands: list[list[str]]) -> list[bool]:
    """Which of these commands a user may send; nothing is executed."""
    with admin.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command("ACL", "DRYRUN", user, *command)
        return [answer == b"OK" for answer in pipe.execute(raise_on_error=False)]


@pytest.mark.parametrize("user", USERS)
def test_a_server_allows_what_the_rules_say_and_nothing_else(actors: Actors, user: str) -> None:
    """Every command that brokerfl sends, for every key: one's own, another node's, and another realm's."""
    role, asked, expected = USERS[user], list[list[str]](), list[bool]()
    nobodys = {Role.NODE: (*NOBODYS, *ALIKE, *OF_NO_REALM), Role.SERVER: (*NOBODYS, *OF_NO_REALM)}.get(role, NOBODYS)
    for name, text in SAMPLES.items():
        for kind, node, realm in product(KINDS, (ME, SOMEBODY), (OWN, OTHER)):
            asked.append(text.format(sample(kind, KEYS, node, realm)).split(" "))
            expected.append(is_allowed(role, name, kind, mine=node == ME, trusted=realm == OWN))
        asked += (text.format(key).split(" ") for key in nobodys)
        expected += [False] * len(nobodys)
    found = tried(actors.admin, user, asked)
    assert [each for each, is_so, should in zip(asked, found, expected, strict=True) if is_so is not should] == []
    assert any(expected)


@pytest.mark.parametrize("user", USERS)
def test_no_other_command_is_allowed(actors: Actors, user: str) -> None:
    """Whatever this server knows: scripts, CONFIG, DEBUG, FLUSHALL, KEYS, MONITOR, MIGRATE and all the others."""
    role, admin = USERS[user], actors.admin
    allowed = {*COMMON, "client|setinfo", "quit", "reset", *WITHOUT_KEYS[role]}  # those two cannot be forbidden
    allowed |= {command for right in RIGHTS if right.role is role for command in right.commands}
    known = [*described(actors)]
    assert {"eval", "flushall", "keys", "monitor", "debug", "config|set"} <= {name for name, _ in known}
    asked, names = list[list[str]](), list[str]()
    for name, arity in known:
        words = name.split("|")
        for more in (0, 1, 3):
            asked.append([*words, *["1"] * (arity - len(words) + more)])
            names.append(name)
    found = tried(admin, user, asked)
    too_much = {name for name, is_so in zip(names, found, strict=True) if is_so} - allowed
    assert too_much == set()


def described(actors: Actors) -> Iterator[tuple[str, int]]:
    """Yield each command and subcommand of the server, and the least number of its words."""
    with actors.socket() as ask:
        for info in ask("COMMAND"):
            for name, arity, *_ in (info, *info[9]):
                yield name.decode(), abs(arity)


# Real attacks, beside runs that go on.

Attack = tuple[Any, ...]


def thief(actors: Actors, user: str) -> redis_py.Redis:
    """A client of an attacker who has this user's password."""
    return actors.connect_as(user, None).redis


def refused(client: redis_py.Redis, *command: Any) -> bool:
    """Whether a command is refused because a right is missing."""
    try:
        client.execute_command(*command)
    except NoPermissionError:
        return True
    except ResponseError as error:
        return "DEBUG command not allowed" in str(error)  # to nobody
    return False


def on_server() -> list[Attack]:
    """Scripts, settings, other users, everybody's keys."""
    return [
        ("EVAL", "return 1", 0), ("FUNCTION", "LOAD", "#!lua name=x\nreturn 1"), ("SCRIPT", "LOAD", "return 1"),
        ("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "GET", "*"), ("DEBUG", "SLEEP", 9), ("FLUSHALL",), ("KEYS", "*"),
        ("SCAN", 0), ("MONITOR",), ("SHUTDOWN", "NOSAVE"), ("CLIENT", "KILL", "TYPE", "normal"), ("ACL", "LIST"),
        ("ACL", "SETUSER", "x", "on", "nopass", "+@all", "~*"), ("CLIENT", "PAUSE", 9999), ("SWAPDB", 0, 1),
        ("REPLICAOF", "127.0.0.1", 1), ("SUBSCRIBE", "x"), ("PUBLISH", "x", "y"), ("SELECT", 1),
    ]  # fmt: skip


def on_registry(node: int) -> list[Attack]:
    """Another identity, nodes that there are not, and none that there are."""
    return [
        ("SET", KEYS.identity, "x"), ("UNLINK", KEYS.identity), ("PEXPIRE", KEYS.identity, 1), ("SET", KEYS.probe, "x"),
        ("SADD", KEYS.nodes, 1, 2, 3), ("SREM", KEYS.nodes, node), ("UNLINK", KEYS.nodes), ("UNLINK", KEYS.runs),
    ]  # fmt: skip


def on_node(node: int) -> list[Attack]:
    """Steal its name, pause it, delete what it has, or make it do something."""
    lease, info, ctl = KEYS.node_lease(node), KEYS.node_info(node), KEYS.ctl(node)
    return [
        ("SET", lease, "mine"), ("GET", lease), ("UNLINK", lease), ("PEXPIRE", lease, 1), ("HSET", info, "name", "x"),
        ("HSET", info, "paused", 1), ("HGETALL", info), ("UNLINK", info), ("UNLINK", ctl), ("XTRIM", ctl, "MAXLEN", 0),
        ("XREADGROUP", "GROUP", "brokerfl", node, "STREAMS", ctl, ">"), ("HGETALL", KEYS.node_runs(node)),
    ]  # fmt: skip


def on_run(run: int, node: int) -> list[Attack]:
    """Read, forge, delete, take over, brick with the last id, wipe, and make a key one of another type."""
    inbox, outbox, data = KEYS.of_node_and_run(node, run)
    return [
        ("XREADGROUP", "GROUP", "brokerfl", node, "STREAMS", inbox, ">"), ("XRANGE", inbox, "-", "+"),
        ("XADD", inbox, "*", "d", "forged"), ("XDEL", inbox, "1-1"), ("UNLINK", inbox), ("PEXPIRE", inbox, 1),
        ("XADD", outbox, "*", "d", "forged"), ("XADD", outbox, LAST, "d", ""), ("UNLINK", outbox),
        ("XADD", outbox, "MAXLEN", 0, "*", "d", ""), ("XTRIM", outbox, "MAXLEN", 0), ("RENAME", outbox, inbox),
        ("XADD", data, "*", "d", "forged"), ("SET", data, "x"), ("SET", KEYS.owner(run), "9:mine:0"),
        ("GET", KEYS.run_lease(run)), ("HSET", KEYS.meta(run), "status", "stopping"), ("HGETALL", KEYS.meta(run)),
        ("HGETALL", KEYS.ledger(run)), ("HGETALL", KEYS.context(run)), ("LRANGE", KEYS.groups(run), 0, -1),
        ("UNLINK", KEYS.meta(run)), ("SET", KEYS.run_status(run), "x"), ("XADD", KEYS.events(run), "*", "0", "x"),
        ("XADD", KEYS.log(run), "MAXLEN", 0, "*", "l", ""), ("SADD", KEYS.run_nodes(run), node),
        ("HSET", KEYS.blobs(run), "x", "y"), ("SET", KEYS.blob(run, bytes(40)), "x"), ("UNLINK", KEYS.bell(run)),
        ("SET", KEYS.bell(run), "x"), ("XTRIM", KEYS.bell(run), "MAXLEN", 0), ("XREAD", "STREAMS", KEYS.bell(run), 0),
    ]  # fmt: skip


def rounds(driver: Driver, nodes: list[int], count: int, between: Callable[[], object] = lambda: None) -> None:
    """Ask all nodes so many times; each answers right."""
    for turn in range(count):
        between()
        messages = [driver.create_message(number(turn), "train", node, f"{turn}") for node in nodes]
        assert [number_in(reply) for reply in driver.send_and_receive(messages, timeout=30)] == [turn] * len(nodes)


@contextmanager
def federation(actors: Actors) -> Iterator[tuple[Driver, int, int, redis_py.Redis]]:
    """A run with two nodes, one of which is honest; and a client of whoever has the password of the other one."""
    backend = Backend("rights", actors.connect, actors.admin, actors.url)
    with serving(backend, echo_app(), name="honest") as honest, serving(backend, echo_app(), name="stolen") as stolen:
        driver = start(backend)
        rounds(driver, [honest.node_id, stolen.node_id], 2)
        yield driver, honest.node_id, stolen.node_id, thief(actors, f"node-{stolen.node_id}")
        rounds(driver, [honest.node_id, stolen.node_id], 2)
        driver.end()


def test_a_node_can_do_nothing_to_others(actors: Actors) -> None:
    """One with the password of a node tries everything on another one, and on a run that it takes part in."""
    with federation(actors) as (driver, honest, _, client):
        attacks = [*on_run(driver.run.run_id, honest), *on_node(honest), *on_registry(honest), *on_server()]
        attacks += [("XADD", KEYS.ctl(honest), LAST, "r", ""), ("ZADD", KEYS.runs, -1, driver.run.run_id)]
        assert [attack for attack in attacks if not refused(client, *attack)] == []


def test_what_a_node_does_to_itself_hurts_nobody_else(actors: Actors) -> None:
    """It bricks, wipes and floods what it may write; the other's replies count, and in the end its own do again."""
    with federation(actors) as (driver, honest, stolen, client):
        _, outbox, data = KEYS.of_node_and_run(stolen, driver.run.run_id)

        def spoil() -> None:
            assert refused(client, "SET", outbox, "of another type")
            client.xadd(outbox, {"i": "forged"})
            client.xadd(outbox, {"i": "x" * 300_000})
            client.xadd(data, {"d": "x"}, id=LAST)
            client.unlink(data)
            client.hset(KEYS.node_runs(stolen), mapping={"77": "no frame", "x": "y"})
            client.hset(KEYS.node_info(stolen), mapping={"status": "no status", "labels": "x" * 20_000})
            client.xadd(KEYS.ctl(stolen), {"r": "x"}, maxlen=0)

        rounds(driver, [honest], 3, spoil)


@pytest.mark.parametrize("how", ["the last id", "wiped", "flooded", "too large"])
def test_a_bell_that_others_ring_stops_nobody(actors: Actors, how: str) -> None:
    """Nodes may add rings to the bell of a run. What else that allows costs the run a little time."""
    with federation(actors) as (driver, honest, _, client):
        bell, done, rung = KEYS.bell(driver.run.run_id), threading.Event(), threading.Event()
        ring: Attack = {
            "the last id": ("XADD", bell, LAST, "n", honest),
            "wiped": ("XADD", bell, "MAXLEN", "=", 0, "*", "n", 77),
            "flooded": ("XADD", bell, "*", "n", honest),
            "too large": ("XADD", bell, "*", "n", "x" * 200_000),
        }[how]

        def ring_again_and_again() -> None:
            while not done.wait(0.002):
                with suppress(ResponseError):  # until the bell is mended, it takes nothing behind the last id
                    client.execute_command(*ring)
                    rung.set()

        thread = threading.Thread(target=ring_again_and_again)
        thread.start()
        try:
            assert rung.wait(10)
            rounds(driver, [honest], 4)
        finally:
            done.set()
            thread.join()


def test_a_server_app_can_do_nothing_to_another_realm(actors: Actors) -> None:
    """One with the password of a ServerApp's user tries everything on a run of another user, and on nodes."""
    client, run, node = thief(actors, "thief-server"), int(OTHER.ljust(RUN_DIGITS, "7")), node_id_of(PREFIX, "honest")
    attacks = [*on_run(run, node), *on_node(node), *on_registry(node), *on_server()]
    attacks += [("XADD", KEYS.ctl(node, realm), LAST, "r", "") for realm in ("", OTHER)]
    attacks += [("HSET", KEYS.node_runs(node, realm), run, "frame") for realm in ("", OTHER)]
    attacks += [("ZADD", KEYS.index(realm), -1, run) for realm in ("", OTHER)]
    assert [attack for attack in attacks if not refused(client, *attack)] == []


def test_realms_are_apart(actors: Actors) -> None:
    """Two users' runs go on beside each other; a node serves those of the realms that it trusts, and hears of no other.

    Operators and observers see both, and stop what they want.
    """

    def backend(connect: Callable[[], Connection]) -> Backend:
        return Backend("rights", connect, actors.admin, actors.url)

    both = backend(lambda: actors.node_that_trusts("both", OWN, OTHER))
    one = backend(lambda: actors.node_that_trusts("one", OWN))
    actors.admin.acl_log_reset()
    with serving(both, echo_app(), name="both") as of_both, serving(one, echo_app(), name="one") as of_one:
        ours, theirs = (start(backend(partial(actors.server_in, realm))) for realm in (OWN, OTHER))
        for driver, realm in ((ours, OWN), (theirs, OTHER)):
            assert str(driver.run.run_id).startswith(realm)
            assert len(str(driver.run.run_id)) == RUN_DIGITS
        rounds(ours, [of_both.node_id, of_one.node_id], 3)
        rounds(theirs, [of_both.node_id], 3)
        [unheard] = theirs.push_messages([theirs.create_message(number(1), "train", of_one.node_id, "")])
        rounds(ours, [of_both.node_id, of_one.node_id], 1)
        assert theirs.pull_messages([unheard]) == []
        realms = ("", OWN, OTHER)
        operator, observer = (actors.connect_as(role.value, role, realms) for role in (Role.OPERATOR, Role.OBSERVER))
        running = {ours.run.run_id, theirs.run.run_id}
        assert {info.run_id for info in runs_seen(operator)} == running
        assert {seen.summary.run.run_id for seen in look(observer).runs} == running
        assert [seen.summary.run.run_id for seen in look(actors.server_in(OWN)).runs] == [ours.run.run_id]
        ours.end()
        theirs.detach()
        stop_run(operator, theirs.run.run_id)
        statuses = {info.run_id: info.state for info in runs_seen(operator)}
        assert statuses == {ours.run.run_id: "completed", theirs.run.run_id: "stopped"}
    assert refusals(actors.admin) == []
    names = {key.decode().removeprefix(f"{PREFIX}:") for key in actors.admin.scan_iter()}
    assert {"runs", f"{{{of_both.node_id}}}:runs"} & names == set()
    assert {f"runs:{OWN}", f"runs:{OTHER}"} <= names


def test_what_another_realm_writes_about_a_run_is_not_believed(actors: Actors) -> None:
    """A node takes from the hash of a realm only what that realm's runs are."""
    connection = actors.node_that_trusts("both", OWN, OTHER)
    node, run = node_id_of(PREFIX, "both"), int(OTHER.ljust(RUN_DIGITS, "7"))
    server = actors.server_in(OWN)
    server.redis.hset(KEYS.node_runs(node, OWN), mapping={str(run): "forged", OWN.ljust(RUN_DIGITS, "7"): "frame"})
    assert runs_of(connection, node) == {int(OWN.ljust(RUN_DIGITS, "7")): b"frame"}


def test_an_observer_changes_nothing_and_reads_no_content(actors: Actors) -> None:
    """It sees what a run is at, and its log, but not what is in messages, books and state."""
    client, run, node = thief(actors, "observer"), 77, 5
    inbox, outbox, data = KEYS.of_node_and_run(node, run)
    attacks = [*on_run(run, node), *on_node(node), *on_registry(node), *on_server()]
    attacks += [("XRANGE", key, "-", "+") for key in (inbox, outbox, data)]
    attacks += [("GET", KEYS.blob(run, bytes(40))), ("HVALS", KEYS.ledger(run))]
    allowed = [attack for attack in attacks if not refused(client, *attack)]
    assert allowed == [("GET", KEYS.run_lease(run)), ("GET", KEYS.node_lease(node))]


@pytest.mark.parametrize("user", USERS)
def test_a_checkup_asks_nothing_that_its_user_may_not_ask(actors: Actors, user: str) -> None:
    """Whoever looks for what is wrong is no attack; what could not be asked is no problem."""
    actors.admin.acl_log_reset()
    connection = actors.connect_as(user, USERS[user], (OWN,))
    problems = [each for each in look_over(connection) if each.status is Status.PROBLEM]
    connection.close()
    assert problems == []
    refused = [each for each in refusals(actors.admin) if "probe" not in each]
    assert refused == []
