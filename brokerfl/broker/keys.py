"""Every key brokerfl writes, and how long each lives.

Owns the names and the lifetimes; nothing else spells a key. It must not know what the values mean.

``N`` is a node id and ``R`` a run id, both decimal uint64, ``D`` the sha256 of a chunk in hex, and ``c`` the decimal
counter of the run's owner that uploaded it: user text never becomes part of a key. The braces are hash tags: on a
Cluster, all keys of a node share a slot, all keys of a run do, and the chunks of a model are spread over all slots. The
first tag counts: with one in the prefix, all keys share a slot.

    key               type              lives
    P:id              string            forever: the identity of this Redis data set
    P:nodes           set               forever; a member goes when its info is gone
    P:runs            sorted set        forever; a member goes `MOST_RETENTION` after its run ended
    P:{N}:info        hash              a named node: `MOST_RETENTION` after it was last seen, or until it is forgotten;
                                        an unnamed one: its lease
    P:{N}:lease       string            the node's lease
    P:{N}:ctl         stream            a named node: `RETENTION` after it was last seen; an unnamed one: its lease
    P:{N}:runs        hash              as long as any of its runs
    P:{N}:data:R      stream            ┐
    P:{run:R}:in:N    stream            │ until the run ends; `RETENTION` after its ServerApp was last seen
    P:{run:R}:out:N   stream            │
    P:{run:R}:events  stream            │
    P:{run:R}:log     stream            │
    P:{run:R}:*       hashes, strings   │
    P:bell:{run:R}    stream            ┘
    P:{run:R}:owner   string            as above, and `MOST_RETENTION` after the run ended, as a tombstone
    P:{run:R}:past    string            ┐ `MOST_RETENTION`, from the end of the run on
    P:{run:R}:curves  string            ┘
    P:blob:R:c:{D}    string            as above, or until the last message that needs it is settled
    P:{run:R}:lease   string            the ServerApp's lease
"""

import re
from dataclasses import dataclass

from brokerfl.common import ConfigError

#: Seconds that a detached run keeps its messages; an attached ServerApp renews four times in this time.
RETENTION = 24 * 3600.0

#: Seconds: how long a named node is known after it was last seen; the longest retention of a run; and how long its
#: tombstone and `P:runs` say that it has ended. A ServerApp that was cut off for less than its own retention and finds
#: no owner knows that Redis forgot the run, and writes it again. Its retention is unknown to whoever ends or prunes the
#: run: a ServerApp that took the run over may have another one.
MOST_RETENTION = 30 * 24 * 3600.0

#: Seconds that a lease lasts; it is renewed three times in this time.
LEASE = 15.0

#: Seconds that a named node may be offline before its open messages become Error 5.
OFFLINE_GRACE = 60.0

#: The consumer group of every stream; the consumer is the node id.
GROUP = "brokerfl"

#: About how many entries a doorbell or a bell keeps. They carry no information, so the oldest may be dropped.
BELL_LENGTH = 1000

DEFAULT_PREFIX = "brokerfl"

_PREFIX = re.compile(r"[A-Za-z0-9._:-]*(?:\{[A-Za-z0-9._:-]+\}[A-Za-z0-9._:-]*)?")


def parse_id(text: bytes) -> int | None:
    """Return the node or run id in ``text``; None if it is not one: what others wrote may be anything.

    Each id has one text: with leading zeros it would be counted twice.
    """
    if len(text) > 20 or not text.isdigit() or (text[:1] == b"0" and len(text) > 1):
        return None
    number = int(text)
    return number if number < 2**64 else None


def milliseconds(seconds: float) -> int:
    """Return ``seconds`` as a lifetime for Redis: whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))


@dataclass(frozen=True)
class Keys:
    """The keys under one prefix. With a hash tag in it, such as ``{fl}``, they all share a slot of a Cluster.

    Raises:
        ConfigError: the prefix is empty or contains anything except letters, digits, ``.``, ``_``, ``:`` and ``-``, of
            which some may be in one pair of braces.
    """

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not self.prefix or not _PREFIX.fullmatch(self.prefix):
            raise ConfigError(
                f"the prefix {self.prefix!r} may contain only letters, digits and . _ : - "
                "(it becomes part of every key), some of them in braces, as in {fl}"
            )

    # The registry.

    @property
    def identity(self) -> str:
        return f"{self.prefix}:id"

    @property
    def nodes(self) -> str:
        return f"{self.prefix}:nodes"

    @property
    def runs(self) -> str:
        return f"{self.prefix}:runs"

    # A node.

    def node_info(self, node_id: int) -> str:
        return f"{self.prefix}:{{{node_id}}}:info"

    def node_lease(self, node_id: int) -> str:
        return f"{self.prefix}:{{{node_id}}}:lease"

    def node_runs(self, node_id: int) -> str:
        return f"{self.prefix}:{{{node_id}}}:runs"

    def ctl(self, node_id: int) -> str:
        return f"{self.prefix}:{{{node_id}}}:ctl"

    def inbox(self, node_id: int, run_id: int) -> str:
        return self._run(run_id, f"in:{node_id}")

    def outbox(self, node_id: int, run_id: int) -> str:
        return self._run(run_id, f"out:{node_id}")

    def data(self, node_id: int, run_id: int) -> str:
        return f"{self.prefix}:{{{node_id}}}:data:{run_id}"

    def of_node_in_run(self, node_id: int, run_id: int) -> tuple[str, str]:
        return self.inbox(node_id, run_id), self.outbox(node_id, run_id)

    def of_node_and_run(self, node_id: int, run_id: int) -> tuple[str, str, str]:
        return *self.of_node_in_run(node_id, run_id), self.data(node_id, run_id)

    # A run.

    def _run(self, run_id: int, name: str) -> str:
        return f"{self.prefix}:{{run:{run_id}}}:{name}"

    def meta(self, run_id: int) -> str:
        return self._run(run_id, "meta")

    def owner(self, run_id: int) -> str:
        return self._run(run_id, "owner")

    def run_lease(self, run_id: int) -> str:
        return self._run(run_id, "lease")

    def ledger(self, run_id: int) -> str:
        return self._run(run_id, "ledger")

    def groups(self, run_id: int) -> str:
        return self._run(run_id, "groups")

    def run_nodes(self, run_id: int) -> str:
        return self._run(run_id, "nodes")

    def blobs(self, run_id: int) -> str:
        return self._run(run_id, "blobs")

    def blob(self, run_id: int, chunk: bytes) -> str:
        """The key of a chunk, which is called as `uploaded_by` says."""
        return f"{self.prefix}:blob:{run_id}:{int.from_bytes(chunk[:8], 'big')}:{{{chunk[8:].hex()}}}"

    def cancelled(self, run_id: int) -> str:
        return self._run(run_id, "cancelled")

    def context(self, run_id: int) -> str:
        return self._run(run_id, "context")

    def run_status(self, run_id: int) -> str:
        return self._run(run_id, "status")

    def events(self, run_id: int) -> str:
        return self._run(run_id, "events")

    def log(self, run_id: int) -> str:
        return self._run(run_id, "log")

    def past(self, run_id: int) -> str:
        return self._run(run_id, "past")

    def curves(self, run_id: int) -> str:
        return self._run(run_id, "curves")

    def of_past(self, run_id: int) -> tuple[str, str]:
        """Return the keys that remain of a run that has ended, besides its owner."""
        return self.past(run_id), self.curves(run_id)

    def bell(self, run_id: int) -> str:
        return f"{self.prefix}:bell:{{run:{run_id}}}"

    def of_messages(self, run_id: int) -> tuple[str, ...]:
        """Return the keys by which the messages of a run are found again after a resume."""
        return self.ledger(run_id), self.context(run_id), self.groups(run_id)

    def of_run(self, run_id: int) -> tuple[str, ...]:
        """Return the keys of a run that live as long as it, the owner last; without the streams of its nodes."""
        return (
            self.ledger(run_id),
            self.context(run_id),
            self.blobs(run_id),
            self.run_nodes(run_id),
            self.cancelled(run_id),
            self.groups(run_id),
            self.run_status(run_id),
            self.events(run_id),
            self.log(run_id),
            self.bell(run_id),
            self.meta(run_id),
            self.owner(run_id),
        )
