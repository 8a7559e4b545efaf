"""The servers of a world: one, or three primaries of a Cluster, each a fakeredis with a log of its writes.

Owns where a key is, and how a server forgets. It must not know processes, or when an accident happens.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fakeredis import FakeServer
from redis.crc import key_slot

from brokerfl.broker.fence import ownership_in
from brokerfl.broker.servers import Server
from tests.conftest import PREFIX
from tests.crash.direct import DirectClient

#: Commands that change nothing: a Redis that forgets forgets the others.
READS = {
    "GET", "GETRANGE", "HGET", "HGETALL", "HMGET", "HVALS", "HEXISTS", "HSTRLEN", "EXISTS", "TIME", "XREAD", "XRANGE",
    "XPENDING", "XINFO", "SMEMBERS", "SMISMEMBER", "SCARD", "ZSCORE", "ZRANGE", "PTTL", "TYPE", "WATCH", "UNWATCH",
    "SCAN", "MULTI", "EXEC",
}  # fmt: skip

#: Where the keys are, if there are three servers: those of the run, of each node, and of the registry. Chunks are where
#: their digests say. Spread: no node shares a server with the run. Mixed: one does.
LAYOUTS: dict[str, dict[str, Any]] = {
    "single": {},
    "spread": {"run": 0, "nodes": (1, 2, 1), f"{PREFIX}:id": 1, f"{PREFIX}:nodes": 1, f"{PREFIX}:runs": 2},
    "mixed": {"run": 0, "nodes": (0, 1, 2), f"{PREFIX}:id": 2, f"{PREFIX}:nodes": 2, f"{PREFIX}:runs": 0},
}

Command = tuple[Any, ...]


def tag_of(key: str) -> str:
    """Return the part of a key that says where it is."""
    _, brace, rest = key.partition("{")
    tag, closed, _ = rest.partition("}")
    return tag if brace and closed and tag else key


def keys_of(commands: Iterable[Command]) -> list[str]:
    """Return the keys in these commands. No value begins as a key does."""
    texts = (each.decode(errors="replace") if isinstance(each, bytes) else each for c in commands for each in c[1:])
    return [text for text in texts if isinstance(text, str) and text.startswith(f"{PREFIX}:")]


class Shard:
    """One server, and what it was told.

    Attributes:
        log: each write, or MULTI of some, with its answers.
        durable: how many of them are never forgotten.
    """

    def __init__(self) -> None:
        self.server = FakeServer()
        self.admin = DirectClient(self.server)
        self.log: list[list[tuple[Command, Any]]] = []
        self.durable = 0

    def remember(self, commands: Sequence[Command], result: Any) -> bool:
        """Note what was executed; return whether that was a write."""
        results = result if len(commands) > 1 or isinstance(result, list) else [result]
        results = results if len(results) == len(commands) else [None] * len(commands)
        unit = [
            (args, answer)
            for args, answer in zip(commands, results, strict=True)
            if str(args[0]).split()[0] not in READS and not isinstance(answer, Exception)
        ]
        if not unit or (str(unit[0][0][0]) == "XREADGROUP" and not result):
            return False
        self.log.append(unit)
        return True

    def forget(self, writes: int) -> bool:
        """Become what it was before its last ``writes`` writes: empty it, and do all the others again.

        Not back to before the nodes were registered: a Redis without its identity has lost all data, and says so.

        Returns:
            Whether to forget more would be the same.
        """
        is_utmost = len(self.log) - writes <= self.durable
        self.log = self.log[: max(self.durable, len(self.log) - writes)]
        self.admin.flushall()
        for unit in self.log:
            with self.admin.pipeline(transaction=True) as pipe:
                for args, answer in unit:
                    if args[0] == "XADD" and answer is None:
                        continue
                    pipe.execute_command(*_with_id(args, answer))
                pipe.execute(raise_on_error=False)
        return is_utmost


def _with_id(args: Command, answer: Any) -> Command:
    """An XADD executed again must make the same entry."""
    if args[0] != "XADD":
        return args
    place = args.index("*") if "*" in args else args.index(b"*")
    return (*args[:place], answer, *args[place + 1 :])


class Shards:
    """All servers of a world.

    Args:
        layout: one of `LAYOUTS`.

    Attributes:
        moved: the tags that moved, and the server each was on before.
    """

    def __init__(self, layout: str) -> None:
        self._layout = LAYOUTS[layout]
        self.is_divided = bool(self._layout)
        self.all = [Shard() for _ in range(3 if self.is_divided else 1)]
        self.moved: dict[str, int] = {}
        self._places: dict[str, int] = {}
        self._nodes = 0

    def place_of(self, key: str) -> int:
        """Return which server has a key."""
        if not self.is_divided:
            return 0
        tag = tag_of(key)
        if tag not in self._places:
            alike = [
                place for other, place in self._places.items() if key_slot(other.encode()) == key_slot(tag.encode())
            ]
            self._places[tag] = alike[0] if alike else self._choose(tag)  # ids are random: two may share a slot
        return self._places[tag]

    def _choose(self, tag: str) -> int:
        if tag.startswith("run:"):
            return int(self._layout["run"])
        if tag.isdigit() and len(tag) <= 20:
            self._nodes += 1
            return int(self._layout["nodes"][self._nodes - 1])
        return int(self._layout.get(tag, key_slot(tag.encode()) % len(self.all)))

    def at(self, key: str) -> DirectClient:
        """Return a client that no accident concerns."""
        return self.all[self.place_of(key)].admin

    def names(self) -> list[str]:
        """Return all keys there are."""
        return [key.decode() for shard in self.all for key in shard.admin.scan_iter()]

    def is_ending(self) -> bool:
        """Return whether a run is ending, or has ended."""
        names = self.names()
        return any(self.at(key).hget(key, "status") == b"ending" for key in names if key.endswith(":meta")) or any(
            ownership_in(self.at(key).get(key) or b"").is_over for key in names if key.endswith(":owner")
        )

    def settle(self) -> None:
        """What was written up to now is never forgotten."""
        for shard in self.all:
            shard.durable = len(shard.log)

    def check(self, place: int, commands: Sequence[Command]) -> None:
        """The keys of a command, or of a MULTI, have to share a slot, and to be on that server."""
        keys = keys_of(commands)
        slots = {key_slot(key.encode()) for key in keys}
        assert len(slots) <= 1, f"CROSSSLOT {[command[:4] for command in commands]}"
        assert all(self.place_of(key) == place for key in keys), f"{commands} was sent to server {place}"

    def move(self, key: str) -> None:
        """Move the slot of a key to the next server."""
        tag, former = tag_of(key), self.place_of(key)
        place = self._places[tag] = (former + 1) % len(self.all)
        self.moved[tag] = former
        here, there = (self.all[at].server.dbs[0] for at in (former, place))
        with here.condition:
            for name in [name for name in here if tag_of(name.decode()) == tag]:
                there[name] = here[name]
                here.notify_watch(name)
                del here[name]


class KnownShards:
    """The servers as one process knows them: `brokerfl.broker.servers.Servers` of a Cluster.

    Args:
        shards: the servers.
        make: makes the client and the sockets of one of them.
    """

    divide = True

    def __init__(self, shards: Shards, make: Callable[[int], Server]) -> None:
        self.lost: Callable[[], None] = lambda: None
        self._shards = shards
        self._make = make
        self._servers: dict[int, Server] = {}
        self._moved = set(shards.moved)

    def at(self, key: str) -> Server:
        """Return the server that has the key, as far as known."""
        place, tag = self._shards.place_of(key), tag_of(key)
        if tag not in self._moved:
            place = self._shards.moved.get(tag, place)
        if place not in self._servers:
            self._servers[place] = self._make(place)
        return self._servers[place]

    def refresh(self) -> None:
        """Find out where everything is."""
        self._moved.update(self._shards.moved)

    def all(self) -> list[Server]:
        """Return those that were asked for."""
        return list(self._servers.values())
