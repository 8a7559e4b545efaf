"""The inboxes: how a message reaches a node, and how a node reads all its runs at once.

Owns the streams `P:{run:R}:in:N` and what a node does with its hash `P:{N}:runs`. It must not know what a message says.

Only a ServerApp creates an inbox, together with the outbox, so that no node revives a run that ended. The node hears of
it by an echo, which is repeated as long as the node owes a reply.

Where all keys share a slot, one blocking XREADGROUP reads the doorbell and all inboxes (`reach` says which). On a
Cluster it reads the doorbell and what shares its slot; each message rings, and the others are read when they have rung.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from logging import WARNING
from typing import Any

from redis.client import Pipeline
from redis.exceptions import ResponseError

from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import BLOCK, Connection
from brokerfl.broker.contact import READ_ON, STEER, Ring, run_in, silence
from brokerfl.broker.failure import map_errors, meaning
from brokerfl.broker.gather import Gather
from brokerfl.broker.keys import BELL_LENGTH, GROUP, LEASE, Keys, milliseconds
from brokerfl.broker.oversize import MOST_ANSWER, all_entries
from brokerfl.broker.pending import is_missing, pending_ids, read_pending, with_others
from brokerfl.broker.reach import MOST_STREAMS, Reach
from brokerfl.broker.runs import runs_of
from brokerfl.broker.sockets import Command
from brokerfl.broker.stream import batches, entries
from brokerfl.broker.tour import Tour
from brokerfl.common import log
from brokerfl.wire.frame import Fields, size_of
from brokerfl.wire.message import message_id_of

#: Most runs that a node serves at once.
MOST_RUNS = 256

#: Most entries that one read returns, of all inboxes together; at least one of each.
MOST_READ = 256


def add_message(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, fields: Fields) -> None:
    """Put one message into ``pipe``. The result is the entry's id, or None without an inbox: contact the node again."""
    pipe.xadd(keys.inbox(node_id, run_id), fields, nomkstream=True)  # type: ignore[arg-type]


def remove_message(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, *entry_ids: str) -> None:
    """Put the removal of a message from its inbox into ``pipe``. XACK frees no memory, XDEL does."""
    inbox = keys.inbox(node_id, run_id)
    for some in batches(entry_ids):
        pipe.xack(inbox, GROUP, *some)
        pipe.xdel(inbox, *some)


def discard_message(connection: Connection, node_id: int, run_id: int, entry_id: str) -> None:
    """Remove a message that gets no reply: it expired, or was already deleted."""
    redis = connection.at(connection.keys.inbox(node_id, run_id)).redis
    with map_errors(connection.url), redis.pipeline(transaction=False) as pipe:
        remove_message(pipe, connection.keys, node_id, run_id, entry_id)
        pipe.execute(raise_on_error=False)


def entries_of(connection: Connection, node_id: int, run_id: int) -> Iterator[tuple[str, str]]:
    """Yield (entry id, message id) of everything in an inbox; nothing if it is gone or is not a stream."""
    for entry_id, fields in all_entries(connection, connection.keys.inbox(node_id, run_id)):
        yield entry_id, message_id_of(fields)


@dataclass(frozen=True)
class Delivery:
    """One entry of an inbox.

    Attributes:
        run_id: the run.
        entry_id: its id.
        fields: empty if it was deleted before it was read again.
        is_old: it had been delivered before, and may have been taken back since.
    """

    run_id: int
    entry_id: str
    fields: dict[bytes, bytes]
    is_old: bool = False


class Inboxes:
    """All inboxes of one node, read in one blocking XREADGROUP with its doorbell.

    Args:
        connection: used by one thread at a time.
        node_id: the node; also the consumer's name.
        on_runs: called with the frames by run id after each read, without runs that have no inbox.
        in_hand: returns the entries that the node has in hand, by run id.
    """

    def __init__(
        self,
        connection: Connection,
        node_id: int,
        on_runs: Callable[[dict[int, bytes]], None] = lambda _: None,
        in_hand: Callable[[], Mapping[int, Collection[str]]] = dict,
    ) -> None:
        self._connection = connection
        self._node_id, self._on_runs, self._in_hand = node_id, on_runs, in_hand
        self._bells = connection.keys.doorbells(node_id)
        self._runs: dict[str, int] = {}
        self._reach = Reach(connection, self._bells)
        self._behind: dict[str, str] = {}  # of inboxes that have more: the last entry that was read again
        self._tour = Tour(connection)
        self._is_over = False
        self.is_steered = False  # a ring said `STEER`

    def refresh(self, *, only_new: bool = False) -> bool:
        """Read again which runs there are. Returns whether anything changed.

        Inboxes that are missing or are not streams are left out: a single one would make the whole read fail. A run
        whose inbox is missing is over: it expired, and its field is removed from the hash.

        Args:
            only_new: look only at inboxes that are not read yet. One of the others that is missing fails a read.
        """
        connection, keys = self._connection, self._connection.keys
        frames = runs_of(connection, self._node_id)
        inboxes = {keys.inbox(self._node_id, run_id): run_id for run_id in frames}
        has_room = not only_new or len(self._runs.keys() & inboxes.keys()) < MOST_RUNS
        asked = [key for key in inboxes if not (only_new and key in self._runs)] if has_room else []
        with map_errors(connection.url):
            gather = Gather(connection)
            for key in asked:
                gather.at(key).type(key)
            types = dict(zip(asked, gather.execute(), strict=True))
        before = self._runs
        there = {key: run_id for key, run_id in inboxes.items() if types.get(key, b"stream") == b"stream"}
        self._runs = self._within_limit(there)
        self._reach.divide(self._runs)
        passed_over = {run_id for key, run_id in there.items() if key not in self._runs}
        missing = {inboxes[key] for key, kind in types.items() if kind == b"none"}
        if missing:
            self._forget(missing)
        passed_over.update(missing)
        self._on_runs({run_id: frame for run_id, frame in frames.items() if run_id not in passed_over})
        return before != self._runs

    def _within_limit(self, inboxes: dict[str, int]) -> dict[str, int]:
        """Return at most `MOST_RUNS` inboxes: those already read, then as many others as there is room for."""
        is_over, was_over = len(inboxes) > MOST_RUNS, self._is_over
        self._is_over = is_over
        if not is_over:
            return inboxes
        if not was_over:
            text = "This node has %s runs under the prefix %r; it serves %s of them"
            log(WARNING, text, len(inboxes), self._connection.keys.prefix, MOST_RUNS)
        by_age = sorted(inboxes, key=lambda key: key not in self._runs)
        return {key: inboxes[key] for key in by_age[:MOST_RUNS]}

    def _forget(self, missing: Iterable[int]) -> None:
        """Remove the runs whose inboxes are missing from the hash, with their data streams.

        One that makes its inbox just now contacts this node again, for it owes a reply.
        """
        connection, node_id = self._connection, self._node_id
        keys, redis = connection.keys, connection.at(self._bells[0]).redis
        with map_errors(connection.url), redis.pipeline(transaction=False) as pipe:
            for batch in batches(missing):
                for run_id in batch:
                    pipe.hdel(keys.node_runs_of(node_id, run_id), str(run_id))
                pipe.unlink(*(keys.data(node_id, run_id) for run_id in batch))
            pipe.execute()

    def drain(self) -> list[Delivery]:
        """Return everything that was delivered to this node and is still in the inboxes. Call after every connect."""
        self.refresh()
        self._reach.doubt()
        return self.pending()

    def pending(self, inboxes: Collection[str] | None = None) -> list[Delivery]:
        """Return what was delivered from these inboxes, by default all that are known, and is still there.

        `read` returns what exceeds `MOST_ANSWER`.
        """
        found, room = list[Delivery](), MOST_ANSWER
        after = dict.fromkeys(self._runs if inboxes is None else inboxes, "0")
        self._behind = {key: last for key, last in self._behind.items() if key not in after}
        while after and room > 0:
            known = self._runs
            some = dict(islice(after.items(), MOST_STREAMS))
            batch = self._read(some, count=100, block=None)
            found += [replace(delivery, is_old=True) for delivery in batch]
            room -= sum(size_of(delivery.fields) for delivery in batch)
            last = {self._connection.keys.inbox(self._node_id, each.run_id): each.entry_id for each in batch}
            if not batch and self._runs != known:  # an inbox was missing, and nothing was read of the others
                last = some
            last = {key: at for key, at in after.items() if key not in some} | last
            after = {key: entry_id for key, entry_id in last.items() if key in self._runs}
        self._behind = after | self._behind
        return found

    def _one_by_one(self, after: dict[str, str]) -> list[Delivery]:
        """Return what was delivered behind these entries until it has `MOST_ANSWER` bytes. The rest is behind."""
        found, room = list[Delivery](), MOST_ANSWER
        self._behind |= after
        for key, last in after.items():
            for entry_id, fields in read_pending(self._connection, key, self._node_id, last):
                found.append(Delivery(self._runs[key], entry_id, fields, is_old=True))
                self._behind[key], room = entry_id, room - size_of(fields)
                if room <= 0:
                    return found
            del self._behind[key]
        return found

    def read(self, count: int, block: float = BLOCK, without: Collection[int] = ()) -> list[Delivery]:
        """Return new messages: at most ``count`` of each run, as soon as there is one, or none after ``block`` seconds.

        Of many runs at once it returns fewer of each: see `MOST_READ`.

        If a run came or ended, it may return early with nothing.

        Args:
            count: most messages of one run; 0 waits for a ring.
            block: seconds.
            without: ids of runs to leave out.
        """
        if self._tour.misses_one(self._reach.far):
            self.refresh()
        self._reach.look()
        wanted = [key for key, run_id in self._runs.items() if run_id not in without] if count else []
        due = self._reach.due.intersection(wanted)
        streams = {**dict.fromkeys(self._bells, ">"), **dict.fromkeys(self._reach.next(wanted), ">")}
        self._behind = {key: last for key, last in self._behind.items() if key in self._runs}
        found = self._one_by_one({key: last for key, last in self._behind.items() if key in wanted})
        block = self._reach.patience(block) if wanted else block
        return found or self._read(streams, count, None if due else round(block * 1000), wanted)

    def _read(
        self, streams: Mapping[str, str], count: int, block: int | None, wanted: Collection[str] = ()
    ) -> list[Delivery]:
        """Read streams. If the doorbell rang, go on with what is new: of those inboxes that are ``wanted``."""
        each = max(1, min(count, MOST_READ // max(1, len(streams.keys() - {*self._bells}))))
        found, rung, room = list[Delivery](), dict[Ring, str](), MOST_ANSWER
        cut, is_gone = dict[str, str](), False
        for part, response in self._ask(streams, each, block):
            if cut or room < 0 or isinstance(response, OversizeError):  # what follows may have been sent twice
                cut |= part
            elif isinstance(response, ResponseError):
                if not is_missing(response):
                    raise meaning(response, self._connection.url)
                is_gone = True
            else:
                before = len(found)
                for key, entry_id, fields in entries(response):
                    if key in self._bells:
                        rung[key, entry_id] = fields.get(b"r", b"").decode(errors="replace")
                    else:
                        found.append(Delivery(self._runs[key], entry_id, fields))
                room -= sum(size_of(delivery.fields) for delivery in found[before:])
                if len(found) - before < each:
                    self._reach.due.difference_update(key for key, at in part.items() if at == ">")
        if is_gone:
            with map_errors(self._connection.url):
                self._recover()
        if cut:
            found += self._read_again(cut)
        return found + self._heard(rung, found, count, wanted) if rung else found

    def _ask(self, streams: Mapping[str, str], count: int, block: int | None) -> Iterator[tuple[dict[str, str], Any]]:
        """Yield streams that share a slot, and the answer for them: what Redis says, or an `OversizeError`."""
        parts = [{key: streams[key] for key in keys} for keys in self._reach.parts(streams)]
        blocking = () if block is None else ("BLOCK", block)
        commands: list[Command] = []
        for part in parts:  # a doorbell alone is emptied: each ring may name another run
            most = BELL_LENGTH if part.keys() <= {*self._bells} else count
            command = ("XREADGROUP", "GROUP", GROUP, str(self._node_id), "COUNT", most, *blocking)
            commands.append((*command, "STREAMS", *part, *part.values()))
        with map_errors(self._connection.url):
            yield from zip(parts, self._connection.stream(commands, [MOST_ANSWER] * len(parts)), strict=True)

    def _heard(
        self, rung: Mapping[Ring, str], found: Sequence[Delivery], count: int, wanted: Collection[str]
    ) -> list[Delivery]:
        """Return what the rings announce besides what was ``found`` in the same read."""
        self.is_steered |= STEER in rung.values()
        keys, node_id = self._connection.keys, self._node_id
        named = {keys.inbox(node_id, run) for word in rung.values() if (run := run_in(word)) is not None}
        new: set[str] = set()
        more: list[Delivery] = []
        if all(word.startswith(READ_ON) for word in rung.values()) and named <= self._runs.keys():
            silence(self._connection, rung)  # others may have rung since
        else:
            new = self._answer(rung)
            more = self._left_over(found, rung.values())
        far = self._reach.far
        self._reach.due |= far if len(rung) >= BELL_LENGTH else far & named  # others may have fallen out
        announced = new | self._reach.due.intersection(wanted)
        if announced and count:  # do not let new runs wait behind what was read ahead for the others
            more += self._read(dict.fromkeys(announced, ">"), count, block=None)
        return more

    def _read_again(self, streams: dict[str, str]) -> list[Delivery]:
        """The answer was cut off, but what it had was delivered: empty the doorbell unread, read the rest in parts."""
        if self._bells[0] in streams:
            pending = {bell: pending_ids(self._connection, bell, self._node_id) for bell in self._bells}
            if rung := [(bell, entry_id) for bell, entry_ids in pending.items() for entry_id in entry_ids]:
                self._answer(rung)
            streams = dict.fromkeys(self._runs, "0")
            self._reach.doubt()
        return self._one_by_one({key: "0" if at == ">" else at for key, at in streams.items() if key in self._runs})

    def _answer(self, rung: Iterable[Ring]) -> set[str]:
        """Look at the runs, after the deletion of rings. Returns the new inboxes.

        One look answers all rings, also those that were not read, unless inboxes are read only if their runs rang.
        """
        known = set(self._runs)
        silence(self._connection, rung, all_of_them=not self._reach.far)
        self.refresh(only_new=True)
        return set(self._runs) - known

    def _left_over(self, found: Iterable[Delivery], words: Collection[str]) -> list[Delivery]:
        """Return what the process that had the id before was given, and has not executed.

        Of runs that have messages in hand, only the ids are asked for: no content in hand is read again. Of inboxes
        that each cost a command, only those are read of whose runs these ``words`` are, unless one names no run.
        """
        known = {run_id: {*entry_ids} for run_id, entry_ids in self._in_hand().items()}  # first: it only gets less
        for delivery in found:
            known.setdefault(delivery.run_id, set()).add(delivery.entry_id)
        told = {run_in(word) for word in words if not word.startswith(READ_ON)}
        passed_over = () if None in told else (key for key in self._reach.far if self._runs[key] not in told)
        asked = self._runs.keys() - self._behind.keys() - {*passed_over}  # `read` goes on with those that are behind
        busy = {key: known[self._runs[key]] for key in asked if self._runs[key] in known}
        asked -= busy.keys() - with_others(self._connection, self._node_id, busy)
        return [old for old in self.pending(asked) if old.entry_id not in known.get(old.run_id, ())]

    def _recover(self) -> None:
        """A stream or its group is missing: a run ended, or somebody deleted a key.

        The node creates doorbells, but never an inbox. A group on an inbox that exists revives nothing.
        """
        gather, bells = Gather(self._connection), self._bells
        for key in (*self._runs, *bells):
            gather.at(key).xgroup_create(key, GROUP, id="0", mkstream=key in bells)
        for bell in bells:
            gather.at(bell).pexpire(bell, milliseconds(LEASE), nx=True)  # until the next renewal
        repaired = any(made is True for made in gather.execute(raise_on_error=False)[: -len(bells)])
        if not self.refresh() and not repaired:
            time.sleep(0.05)
