"""The topology: which server is the primary of which slots, as Sentinels or a Cluster say.

Owns how they are asked and what their answers mean. It must not know how long an answer holds, or who needs it.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from brokerfl.broker.url import Address, RedisURL
from brokerfl.common import ConfigError, InsecureURL

SLOTS = 16384

#: Asks a server or a Sentinel at an address a command; raises redis-py's errors.
Ask = Callable[[Address, Sequence[Any]], Any]


@dataclass(frozen=True)
class Topology:
    """The primary of each slot; None where there is none. Of one slot only if there is one primary for all keys."""

    slots: tuple[Address | None, ...]

    def primary_of(self, key: str) -> Address | None:
        """Return the address of the primary that has ``key``."""
        slots = self.slots
        return slots[key_slot(key.encode())] if len(slots) > 1 else slots[0]

    @property
    def primaries(self) -> set[Address]:
        """The addresses of all primaries."""
        return {address for address in self.slots if address is not None}


class Sentinels:
    """Asks each Sentinel in turn who the primary is: the first that knows it is believed.

    Args:
        url: has the Sentinels and the name of the service.
        ask: asks one of them.
    """

    def __init__(self, url: RedisURL, ask: Ask) -> None:
        self._url = url
        self._ask = ask
        self._hosts = list(url.hosts)

    def find(self) -> Topology:
        """Return where the primary is.

        Raises:
            ConfigError: they do not know the service, or what answers is no Sentinel.
            InsecureURL: it is on another machine, and the connection would be plain text.
            RedisError: none of them answers.
        """
        problems = _Problems("Sentinel")
        for place in list(self._hosts):
            try:
                answer = self._ask(place, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service))
            except RedisError as error:
                problems.add(place, self._meaning(place, error))
                continue
            if answer is not None:
                self._hosts.sort(key=lambda each: each != place)  # the next time it is the first to be asked
                host, port = map(_text, answer)
                found = host or place[0], int(port)
                self._url.check_host(found[0], f" ({found[0]}, which its Sentinels name)")
                return Topology((found,))
            problems.add(place, ConfigError(f"the Sentinels of {self._url.shown} know no {self._url.service!r}"))
        raise problems.worst()

    def replicas(self) -> set[Address]:
        """Return the replicas that the Sentinels know, also those that are down.

        Raises:
            InsecureURL: one is on another machine, and the connection would be plain text.
            RedisError: the Sentinel that was asked last does not answer.
        """
        found = set()
        for about in self._ask(self._hosts[0], ("SENTINEL", "REPLICAS", self._url.service)):
            known = _metadata(about)
            found.add((known["ip"], int(known["port"])))
        for host, _ in found:
            self._url.check_host(host, f" ({host}, which its Sentinels name)")
        return found

    def _meaning(self, place: Address, error: Exception) -> Exception:
        if isinstance(error, AuthenticationError | NoPermissionError):
            return AuthenticationError(
                f"the Sentinel at {shown(place)} has a login of its own, which the URL gives at its end: "
                f"/{self._url.service}?sentinel_password=… (and &sentinel_username=…)"
            )
        if isinstance(error, ResponseError) and "unknown command" in str(error):
            return ConfigError(f"{shown(place)} in {self._url.shown} is no Sentinel, which has port 26379 as a rule")
        return error


class Cluster:
    """Asks the servers of a Cluster, in any order, who has which slots: the first that answers is believed.

    CLUSTER SLOTS, for CLUSTER SHARDS is not there in every managed Redis, and says no more that is needed here.

    Args:
        url: has some of the servers.
        ask: asks one of them.
    """

    def __init__(self, url: RedisURL, ask: Ask) -> None:
        self._url = url
        self._ask = ask
        self._known: set[Address] = set()

    def servers(self) -> set[Address]:
        """Return all servers, primaries and replicas, also those that are down.

        CLUSTER SLOTS leaves out a replica that has no data yet.

        Raises:
            ConfigError, InsecureURL, RedisError: as for `find`.
        """
        self.find()
        found = set(self._known)
        _, answer = self._ask_any("CLUSTER", "NODES")
        for line in _text(answer).splitlines():
            _, place, flags = line.split()[:3]
            address, _, name = place.partition(",")
            host, _, port = address.partition("@")[0].rpartition(":")
            name = name.partition(",")[0]
            both = {(each, int(port)) for each in (host, name) if each}
            if both and not both & found and not {"noaddr", "handshake"}.intersection(flags.split(",")):
                found.add((name if name and self._url.is_tls else host, int(port)))
        for host, _ in found:
            self._url.check_host(host, f" ({host}, which its Cluster names)")
        return found

    def find(self) -> Topology:
        """Return where the primaries are.

        Raises:
            ConfigError: what answers is no Cluster.
            InsecureURL: one is on another machine, and the connection would be plain text.
            RedisError: none of them answers.
        """
        return self._read(*self._ask_any("CLUSTER", "SLOTS"))

    def _ask_any(self, *command: str) -> tuple[Address, Any]:
        problems = _Problems("server of the Cluster")
        # One that is cut off from the others says what it last knew: the next time, another one is asked.
        places = random.sample(sorted(self._known), len(self._known))
        for place in [*places, *(host for host in self._url.hosts if host not in self._known)]:
            try:
                return place, self._ask(place, command)
            except RedisError as error:
                problems.add(place, self._meaning(place, error))
        raise problems.worst()

    def _meaning(self, place: Address, error: Exception) -> Exception:
        text = str(error)
        if isinstance(error, ResponseError) and ("cluster support disabled" in text or "unknown command" in text):
            return ConfigError(f"{shown(place)} in {self._url.shown} is no server of a Cluster: write redis://")
        return error

    def _read(self, place: Address, answer: Iterable[Any]) -> Topology:
        slots: list[Address | None] = [None] * SLOTS
        known: set[Address] = set()
        for first, last, *servers in answer:
            places = [_place(place, server) for server in servers]
            slots[first : last + 1] = [places[0]] * (last + 1 - first)
            known.update(filter(None, places))
        for host, _ in known:
            self._url.check_host(host, f" ({host}, which its Cluster names)")
        self._known = known
        return Topology(tuple(slots))


def _place(asked: Address, server: Sequence[Any]) -> Address | None:
    """Return the address of a server in an answer to CLUSTER SLOTS.

    A server without a host, or whose host is "", is at the host that was asked. One that was told to announce its
    host's name, and has none, is "?": it can be reached by its IP address, if that is said.
    """
    host, port, *rest = server
    name = _text(host or "")
    if name == "?":
        name = _metadata(rest[1] if len(rest) > 1 else ()).get("ip", "")
        if not name:
            return None
    return name or asked[0], int(port)


def _metadata(given: Any) -> dict[str, str]:
    pairs = given.items() if isinstance(given, dict) else zip(given[::2], given[1::2], strict=False)
    return {_text(name): _text(value) for name, value in pairs}


class _Problems:
    """Why nobody gave an answer."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._found: list[tuple[Address, Exception]] = []

    def add(self, place: Address, error: Exception) -> None:
        self._found.append((place, error))

    def worst(self) -> Exception:
        """Return what somebody has to change, if there is such; else all of it in one line."""
        for kind in (InsecureURL, ConfigError, AuthenticationError, NoPermissionError):
            for _, error in self._found:
                if isinstance(error, kind):
                    return error
        texts = "; ".join(f"{shown(place)}: {error}" for place, error in self._found)
        return ConnectionError(f"no {self._who} answers ({texts})")


def shown(place: Address) -> str:
    """Return host and port in words."""
    return f"{place[0]}:{place[1]}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
