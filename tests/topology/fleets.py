"""Servers that Sentinels or a Cluster know: how they are started, fail over, die, and hand their slots on.

Owns that. It must not know brokerfl's keys or processes.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import redis as redis_py
from redis.crc import key_slot

from brokerfl.broker.embedded import EmbeddedServer, die_with_parent, free_port

#: What Sentinels call the primary and its replicas.
SERVICE = "fl"

#: Seconds until a test gives up waiting for servers.
PATIENCE = 40.0

#: Replicas are in step at once, and nobody waits long for a server that is gone.
_OPTIONS = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--enable-debug-command", "local")

#: Milliseconds.
_NODE_TIMEOUT = 1000


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until ``condition`` returns something true; a server that does not answer has not said so."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            found = condition()
        except redis_py.RedisError:
            found = None
        if found:
            return found
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


class Fleet:
    """Servers by port, as a context manager.

    Args:
        binary: the server to start.

    Attributes:
        url: what leads to them.
    """

    url = ""

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.servers: dict[int, EmbeddedServer] = {}
        self._options: dict[int, tuple[str, ...]] = {}
        self._stack = ExitStack()
        self._clients: dict[int, redis_py.Redis] = {}

    def __enter__(self) -> "Fleet":
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()
        self._stack.close()

    def _start(self) -> None:
        raise NotImplementedError

    def _serve(self, *options: str, port: int | None = None) -> int:
        server = EmbeddedServer(port, binary=self.binary, options=(*_OPTIONS, *options))
        self._stack.enter_context(server)
        self.servers[server.port], self._options[server.port] = server, options
        return server.port

    def client(self, port: int) -> Any:
        """A client of one server."""
        if port not in self._clients:
            password = self._password(port)
            self._clients[port] = redis_py.Redis(port=port, password=password, socket_timeout=5.0, retry=None)
        return self._clients[port]

    def _password(self, port: int) -> str | None:
        return None

    def primaries(self) -> list[int]:
        """The ports of the servers that are primaries, as far as they know."""
        raise NotImplementedError

    def primary_of(self, key: str) -> int:
        """The port of the primary that has a key."""
        raise NotImplementedError

    def fail_over(self, key: str) -> int:
        """Let a replica take the place of a primary, with everybody's consent; return its port."""
        raise NotImplementedError

    def kill(self, port: int) -> None:
        """kill -9."""
        os.kill(self.servers[port].pid, signal.SIGKILL)
        self.servers[port].wait()

    def kill_primary(self, key: str) -> int:
        """kill -9 of the primary that has a key; return the port of the replica that takes its place."""
        port = self.primary_of(key)
        self.kill(port)
        return self.successor(key, port)

    def successor(self, key: str, former: int) -> int:
        """Wait until a replica has taken the place of the primary that had a key; return its port."""
        return int(until(lambda: (found := self.primary_of(key)) != former and found, "a replica takes over"))

    def restart(self, port: int) -> None:
        """Start a server that was killed, without its data, as a replica; wait until it is in step."""
        self.servers[port].stop()
        self._serve(*self._options_of_replica(port), port=port)
        self.await_whole()

    def _options_of_replica(self, port: int) -> Sequence[str]:
        return self._options[port]

    def await_whole(self) -> None:
        """Wait until all servers are there, every replica is in step, and everybody knows it."""
        until(self._is_whole, "all servers are there and in step")

    def _is_whole(self) -> bool:
        roles = {port: self.client(port).role() for port in self.servers}
        primaries = {port for port, role in roles.items() if role[0] == b"master"}
        replicas = [role for port, role in roles.items() if port not in primaries]
        return all(role[2] in primaries and role[3] == b"connected" for role in replicas)

    def cut_off(self, port: int) -> None:
        """From now on no replica receives what a primary writes. It stays so until the primary dies."""
        self.client(port).execute_command("ACL SETUSER", "default", "-psync", "-sync")
        self.client(port).execute_command("CLIENT KILL", "TYPE", "replica")

    def lacks(self, port: int) -> int:
        """How many bytes of what a primary wrote its best replica has not received."""
        written = int(self.client(port).info("replication")["master_repl_offset"])
        replicas = [
            found for other in self._living() if (found := self.client(other).info("replication"))["role"] == "slave"
        ]
        return written - max(int(each["slave_repl_offset"]) for each in replicas if int(each["master_port"]) == port)

    def _living(self) -> Iterator[int]:
        for port in self.servers:
            try:
                self.client(port).ping()
            except redis_py.RedisError:
                continue
            yield port

    def scan(self, pattern: str = "*") -> set[str]:
        """All keys."""
        return {key.decode() for port in self.primaries() for key in self.client(port).scan_iter(pattern, count=1000)}

    def flushall(self) -> None:
        """Delete all keys."""
        for port in self.primaries():
            self.client(port).flushall()

    def _role(self, port: int) -> str:
        return str(self.client(port).role()[0].decode())


class SentinelFleet(Fleet):
    """A primary with two replicas, and three Sentinels.

    If a replica takes its place by `fail_over`, the former primary takes writes until the Sentinels have made a replica
    of it, some ten seconds later, and forgets them then.

    Args:
        binary: the server to start.
        password: of the servers.
        sentinel_password: of the Sentinels.
        down_after: milliseconds of silence after which the primary is taken to be dead.
    """

    def __init__(
        self,
        binary: Path,
        password: str | None = None,
        sentinel_password: str | None = None,
        down_after: int = 500,
    ) -> None:
        super().__init__(binary)
        self._down_after = down_after
        self._more = ("--requirepass", password, "--masterauth", password) if password else ()
        self._lines = [f"sentinel auth-pass {SERVICE} {password}"] if password else []
        self._lines += [f"requirepass {sentinel_password}"] if sentinel_password else []
        self._passwords = password, sentinel_password
        self.sentinels = [free_port() for _ in range(3)]
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinels)}/{SERVICE}"

    def _start(self) -> None:
        primary = self._serve(*self._more)
        replicas = [self._serve("--replicaof", f"127.0.0.1 {primary}", *self._more) for _ in range(2)]
        for port in replicas:
            until(lambda p=port: self.client(p).info("replication")["master_link_status"] == "up", "a replica is up")
        for port in self.sentinels:
            start_sentinel(
                self._stack,
                self.binary,
                f"port {port}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2",
                f"sentinel down-after-milliseconds {SERVICE} {self._down_after}",
                f"sentinel failover-timeout {SERVICE} 1500",
                f"sentinel parallel-syncs {SERVICE} 2",
                *self._lines,
            )
        for port in self.sentinels:
            until(lambda p=port: self._knows_all(p), "the Sentinels know each other")

    def _password(self, port: int) -> str | None:
        return self._passwords[port in self.sentinels]

    def _knows_all(self, port: int) -> bool:
        known = self.client(port).sentinel_master(SERVICE)
        return bool(known["num-slaves"] == 2 and known["num-other-sentinels"] == 2)

    def _options_of_replica(self, port: int) -> Sequence[str]:
        return "--replicaof", f"127.0.0.1 {self.primary_of('')}", *self._more

    def _is_whole(self) -> bool:
        known = [self.client(port).sentinel_slaves(SERVICE) for port in self.sentinels]
        return (
            super()._is_whole()
            and self.primary_of("") > 0
            and sum(self._role(port) == "master" for port in self.servers) == 1
            and all(each["master-link-status"] == "ok" and not each["is_sdown"] for each in chain(*known))
        )

    def primaries(self) -> list[int]:
        return [self.primary_of("")]

    def primary_of(self, key: str) -> int:
        """The port that all Sentinels name, if that server says that it is the primary."""
        named = [self.client(port).sentinel_get_master_addr_by_name(SERVICE)[1] for port in self.sentinels]
        port = max(named, key=named.count)
        return int(port if named.count(port) == 3 and self._role(port) == "master" else 0)

    def successor(self, key: str, former: int) -> int:
        """As of any fleet; behind it, nobody but the successor takes writes."""
        port = super().successor(key, former)
        others = [each for each in self._living() if each != port]
        until(lambda: all(self._role(each) == "slave" for each in others), "the others follow it")
        return port

    def fail_over(self, key: str) -> int:
        former = self.primary_of(key)
        until(lambda: self.client(self.sentinels[0]).execute_command("SENTINEL", "FAILOVER", SERVICE), "it may begin")
        return int(until(lambda: (now := self.primary_of(key)) != former and now, "another one is the primary"))


def start_sentinel(stack: ExitStack, binary: Path, *lines: str) -> None:
    """Start a Sentinel with this configuration; it ends with ``stack``."""
    folder = Path(tempfile.mkdtemp(prefix="brokerfl-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    texts = ("bind 127.0.0.1", f"dir {folder}", f"logfile {folder / 'log'}", *lines)
    (folder / "sentinel.conf").write_text("".join(f"{line}\n" for line in texts))
    process = subprocess.Popen(
        [str(binary), str(folder / "sentinel.conf"), "--sentinel"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)


class ClusterFleet(Fleet):
    """Three primaries that have a third of the slots each. A `fail_over` loses no write.

    Args:
        binary: the server to start.
        replicas: of each primary.
        options: more options for each server. With TLS, ``url`` has the ports for that.
        first_port: of the servers, which have this port and the next ones; free ones by default.
    """

    def __init__(
        self, binary: Path, replicas: int = 0, options: Sequence[str] = (), first_port: int | None = None
    ) -> None:
        super().__init__(binary)
        self._replicas = replicas
        self._more = options
        self._first_port = first_port

    def _start(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        buses, known = {}, {}
        for number in range(3 * (1 + self._replicas)):
            chosen = self._first_port and self._first_port + number
            bus, tls = free_port(), free_port() if "--tls-cluster" in self._more else 0
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(_NODE_TIMEOUT))
            options = (*options, "--cluster-port", str(bus), "--tls-port", str(tls), *self._more)
            options = (*options, "--cluster-config-file", str(folder / f"{bus}.conf"))  # who is killed stays who it is
            port = self._serve(*options, port=chosen)
            buses[port], known[port] = bus, tls or port
        ports = list(self.servers)
        scheme = "redis" if known[ports[0]] == ports[0] else "rediss"
        self.url = f"{scheme}+cluster://127.0.0.1:{known[ports[0]]},127.0.0.1:{known[ports[1]]}"
        bounds = (0, 5461, 10923, 16384)
        for number, port in enumerate(ports):
            self._cluster(port, "SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                self._cluster(port, "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            if number:
                self._cluster(port, "MEET", "127.0.0.1", known[ports[0]], buses[ports[0]])
        for port in ports:
            until(lambda p=port: self._info(p)["cluster_known_nodes"] == str(len(ports)), "all servers have met")
        for number, port in enumerate(ports[3:]):
            until(lambda p=port, of=ports[number % 3]: self._cluster(p, "REPLICATE", self.id_of(of)), "it replicates")
        for port in ports:
            until(lambda p=port: self._info(p)["cluster_state"] == "ok", "the Cluster is up")
        for port in ports[3:]:
            until(lambda p=port: self.client(p).info("replication")["master_link_status"] == "up", "a replica is up")
        for port in ports:  # gossip: each knows which are replicas
            until(lambda p=port: len(set(self._owners(p).values())) == 3, "all know who has which slots")
            until(lambda p=port: self._rows(p).count(b" slave ") == len(ports) - 3, "all know the replicas")

    def _cluster(self, port: int, *words: object) -> Any:
        return self.client(port).execute_command("CLUSTER " + str(words[0]), *words[1:])

    def _rows(self, port: int) -> bytes:
        with redis_py.Redis(port=port, retry=None) as plain:
            plain.set_response_callback("CLUSTER NODES", lambda answer, **_: answer)
            found = plain.execute_command("CLUSTER NODES")
        return found.replace(b"myself,", b"") if isinstance(found, bytes) else found.encode().replace(b"myself,", b"")

    def _info(self, port: int) -> dict[str, str]:
        found = self._cluster(port, "INFO")
        return dict(found)

    def id_of(self, port: int) -> str:
        """The id of a server in the Cluster."""
        found = self._cluster(port, "MYID")
        return found.decode() if isinstance(found, bytes) else str(found)

    def _owner(self, port: int, slot: int) -> int:
        """The port of the primary that has a slot, as a server knows it; 0 if nobody has it."""
        ranges = self._owners(port).items()
        return next((owner for first, (owner, last) in ranges if first <= slot <= last), 0)

    def _owners(self, port: int) -> dict[int, tuple[int, int]]:
        """The port of the primary, and the last slot, by the first slot of each range, as a server knows them."""
        plain: Any = self.client(port)
        plain.set_response_callback("CLUSTER SLOTS", lambda answer, **_: answer)
        return {first: (owner[1], last) for first, last, owner, *_ in plain.execute_command("CLUSTER SLOTS")}

    def primaries(self) -> list[int]:
        return [port for port in self._living() if self._role(port) == "master"]

    def primary_of(self, key: str) -> int:
        """The port on which all living servers agree, if that one says that it is a primary."""
        named = {self._owner(asked, key_slot(key.encode())) for asked in self._living()}
        port = named.pop() if len(named) == 1 else 0
        return int(port if port in self.primaries() else 0)

    def _is_whole(self) -> bool:
        return (
            super()._is_whole()
            and 2 * len(primaries := self.primaries()) == len(self.servers)
            and all(map(self.replica_of, primaries))
            and all(
                self._info(port)["cluster_state"] == "ok" and b"fail" not in self._rows(port) for port in self.servers
            )
        )

    def replica_of(self, port: int) -> int:
        """The port of a replica that is in step."""
        for other in self._living():
            role = self.client(other).role()
            if role[0] == b"slave" and role[2] == port and role[3] == b"connected":
                return other
        return 0

    def fail_over(self, key: str) -> int:
        former = until(lambda: self.primary_of(key), "there is a primary")
        replica = until(lambda: self.replica_of(former), "there is a replica")
        until(lambda: self._cluster(replica, "FAILOVER"), "it may begin")
        return int(until(lambda: (now := self.primary_of(key)) != former and now, "another one is the primary"))

    def move_slot(self, key: str, to: int) -> None:
        """Move a slot and its keys to another primary while it is in use, as `redis-cli --cluster reshard` does."""
        with self.moving_slot(key, to):
            pass

    @contextmanager
    def moving_slot(self, key: str, to: int) -> Iterator[None]:
        """As `move_slot`; until the block ends, ``key`` has moved, and no other one."""
        slot, source = key_slot(key.encode()), self.primary_of(key)
        self._cluster(to, "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self._cluster(source, "SETSLOT", slot, "MIGRATING", self.id_of(to))
        self.client(source).migrate("127.0.0.1", to, key, 0, 5000)
        yield
        while keys := self._cluster(source, "GETKEYSINSLOT", slot, 10):
            self.client(source).migrate("127.0.0.1", to, keys, 0, 5000)
        for port in (to, *(each for each in self.primaries() if each != to)):
            self._cluster(port, "SETSLOT", slot, "NODE", self.id_of(to))
        until(lambda: self.primary_of(key) == to, "all know that the slot has moved")

    def lose_slot(self, key: str) -> int:
        """The primary gives a slot up, and nobody takes it; return its port."""
        former, slot = self.primary_of(key), key_slot(key.encode())
        for port in (former, *(each for each in self.primaries() if each != former)):  # it is no gossip
            self._cluster(port, "DELSLOTS", slot)
        until(lambda: not any(self._owner(port, slot) for port in self.primaries()), "nobody has it")
        return former

    def take_slot(self, key: str, port: int) -> None:
        """A primary takes a slot that nobody has."""
        self._cluster(port, "ADDSLOTS", key_slot(key.encode()))


def fleet_called(name: str, binary: Path) -> Fleet:
    """Return the fleet that ``--topology`` calls so, to be entered; each primary has a replica, or two."""
    return SentinelFleet(binary) if name == "sentinel" else ClusterFleet(binary, replicas=1)
