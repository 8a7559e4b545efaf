"""The outboxes: how a reply reaches the run, and how the run hears of it.

Owns the streams `P:{run:R}:out:N` and the bell `P:bell:{run:R}`. It must not know what a reply says, or which message
is open.

Each node has its own outbox: the key says who wrote an entry, and a hostile node can spoil only its own. The bell is
read from a cursor, so no reader takes another's ring; a ring carries no information, so a lost or forged one costs only
time.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from logging import WARNING
from typing import Any

from redis.client import Pipeline
from redis.exceptions import ResponseError

from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import Connection
from brokerfl.broker.data import Settled, remove_chunks
from brokerfl.broker.echoes import send_echoes
from brokerfl.broker.failure import found_or_none, map_errors, translate
from brokerfl.broker.inbox import remove_message
from brokerfl.broker.keys import BELL_LENGTH, Keys, parse_id
from brokerfl.broker.mend import FORGED, is_spoilt, mend
from brokerfl.broker.oversize import MOST_ANSWER, MOST_ENTRY, entries_at, id_behind, warn
from brokerfl.broker.sockets import Command, Sockets, commands_of
from brokerfl.broker.stream import LAST, batches, entries, place_of
from brokerfl.common import RedisUnreachable, log
from brokerfl.wire.frame import Fields, size_of


@dataclass(frozen=True)
class Outgoing:
    """A finished reply, and the inbox entries it answers: more than one if the message was sent again."""

    run_id: int
    inbox_entries: tuple[str, ...]
    fields: Fields


def publish(connection: Connection, node_id: int, replies: Iterable[Outgoing]) -> list[bool]:
    """Put replies into the outboxes, remove their messages from the inboxes, and ring, in one transaction a run.

    A full Redis refuses XADD but not XDEL: without a MULTI a message could be removed although its reply was refused.

    An outbox that somebody with this node's rights made useless refuses the reply, but the message is gone: so the
    outbox is replaced at once, and the reply added.

    Returns:
        For each reply whether it was published; False means that its run is over.

    Raises:
        RedisUnreachable: unknown whether it happened; repeating is safe, because a second reply is dropped.
        RedisOutOfMemory: the replies to some runs may be published; repeating is as safe.
    """
    batch = list(replies)
    results = _publish(connection, node_id, batch)
    spoilt = [at for at, result in enumerate(results) if is_spoilt(result)]
    if spoilt:
        for run_id in dict.fromkeys(batch[at].run_id for at in spoilt):
            mend(connection, connection.keys.outbox(node_id, run_id), keep=True)
        again = _publish(connection, node_id, [batch[at] for at in spoilt])
        for at, result in zip(spoilt, again, strict=True):
            results[at] = result
    return [isinstance(entry, bytes) for entry in results]


def _publish(connection: Connection, node_id: int, batch: list[Outgoing]) -> list[Any]:
    """Return what became of each reply."""
    by_run: dict[int, list[int]] = {}
    for at, reply in enumerate(batch):
        by_run.setdefault(reply.run_id, []).append(at)
    by_server: dict[Sockets, list[int]] = {}
    for run_id in by_run:
        by_server.setdefault(connection.at(connection.keys.bell(run_id)).sockets, []).append(run_id)
    results: list[Any] = [None] * len(batch)
    with map_errors(connection.url):
        for sockets, run_ids in by_server.items():
            publications = [
                _publication(connection.keys, sockets.pipe(), node_id, run_id, [batch[at] for at in by_run[run_id]])
                for run_id in run_ids
            ]
            for run_id, answers in zip(run_ids, sockets.transact(publications), strict=True):
                for at, entry in zip(by_run[run_id], answers, strict=False):
                    results[at] = entry
    return results


def _publication(keys: Keys, pipe: Pipeline, node_id: int, run_id: int, replies: list[Outgoing]) -> list[Command]:
    """Return the transaction that publishes replies to one run; its first results are their entries."""
    for reply in replies:
        pipe.xadd(keys.outbox(node_id, run_id), reply.fields, nomkstream=True)  # type: ignore[arg-type]
    remove_message(pipe, keys, node_id, run_id, *(entry for reply in replies for entry in reply.inbox_entries))
    pipe.xadd(keys.bell(run_id), {"n": str(node_id)}, maxlen=BELL_LENGTH, nomkstream=True)
    return commands_of(pipe)


def tell_lack(connection: Connection, node_id: int, run_id: int) -> None:
    """Ring because a part of a message's content is gone. Raises RedisUnreachable."""
    bell = connection.keys.bell(run_id)
    with map_errors(connection.url):
        ring = {"n": str(node_id), _LACK: ""}
        connection.at(bell).redis.xadd(bell, ring, maxlen=BELL_LENGTH, nomkstream=True)


#: The field of a ring of a node that lacks a content.
_LACK = "l"

Reply = tuple[int, str, dict[bytes, bytes]]

#: Most entries that are read at once of an outbox, of how many outboxes one command reads so many, and most entries of
#: an outbox that has more. One is read at a time where together they have more than `MOST_ANSWER` bytes, or one of them
#: has more than `MOST_ENTRY`.
FIRST_PAGE, PAGE_STREAMS, LONG_PAGE = 4, 8, 256

#: Most rings that are read at once, and bytes: brokerfl writes less than 100 a ring.
_RINGS, _MOST_RINGS = 100, 64 * 1024


class Outboxes:
    """The outboxes of one run, as its ServerApp reads them.

    Several threads may read at once: `is_new` and `advance`, which one of them calls at a time, say which reply is new.
    A ring that two of them hear, or that gets lost between them, costs only time.

    Args:
        connection: to the run's Redis.
        run_id: the run.
    """

    def __init__(self, connection: Connection, run_id: int) -> None:
        self._connection, self._run_id, self._bell = connection, run_id, connection.keys.bell(run_id)
        self._is_refused, self.generation = False, 0
        self._greedy, self._lacking, self._rang, self._answered = (set[int]() for _ in range(4))
        self.reset()

    def reset(self) -> None:
        """Forget the cursors: after a reconnect everything is read again; known replies are recognised.

        What a thread reads meanwhile is of an older generation: it is as true, but it must not move the new cursors.
        """
        self.generation += 1
        self._bell_cursor = "0"
        self._cursors: dict[int, str] = {}
        self._places: dict[int, tuple[int, int]] = {}  # of the cursors
        self._heard: list[int | None] = []

    def wait(self, block: float | None) -> set[int] | None:
        """Return the nodes that rang, waiting up to ``block`` seconds for the first; None does not wait.

        Returns:
            None if a ring did not come from a node: look at the owner.
        """
        if not self._heard and not self._listen(block):
            return None
        heard, self._heard = self._heard, []
        self._rang = {node for node in heard if node is not None}
        return None if None in heard else self._rang

    def lacking(self) -> set[int]:
        """Return the nodes that rang since the last call because they lack a content."""
        lacking, self._lacking = self._lacking, set()
        return lacking

    def has_silent(self) -> bool:
        """Return whether a node answered since the last call, and no ring of it is there: it rings as it answers."""
        answered, self._answered = self._answered, set()
        return not answered <= self._rang | {*self._heard}

    def _listen(self, block: float | None) -> bool:
        """Read who rang; return whether there is a bell."""
        if self._bell_cursor == LAST and mend(self._connection, self._bell, keep=False):
            self._bell_cursor = "0"
        with map_errors(self._connection.url):
            read = _read({self._bell: self._bell_cursor}, block)
            [response] = self._sockets.exchange([read], [_MOST_RINGS])
        if isinstance(response, ResponseError):
            error = translate(response, self._connection.url)
            if error is not None:
                raise error from response
            time.sleep(block or 0.0)  # the key of the bell has another type: sweeps work without it
            return False
        self._take_rings(response)
        return True

    def _take_rings(self, answer: Any) -> None:
        if isinstance(answer, OversizeError):  # brokerfl did not write that: look at everything instead
            mend(self._connection, self._bell, keep=False)
            self._bell_cursor = "0"
            self._heard.append(None)
            return
        for _, entry_id, fields in entries(found_or_none(answer, self._connection.url)):
            self._bell_cursor = entry_id
            node = parse_id(fields.get(b"n", b""))
            self._heard.append(node)
            if node is not None and _LACK.encode() in fields:
                self._lacking.add(node)

    def read(
        self, node_ids: Iterable[int], take: Callable[[Iterable[Reply]], None], settled: Iterable[Settled] = ()
    ) -> bool:
        """Read what is new in the outboxes of ``node_ids``, and delete settled replies.

        New rings are read in the same round trip. It takes more than one only if an outbox has many new replies.

        Args:
            node_ids: the nodes.
            take: is called with (node id, entry id, fields) of a few replies at a time, new until `advance`.
            settled: replies to delete in the same round trip.

        Returns:
            Whether everything was deleted.
        """
        before = self._deletion([*settled])
        deleted: list[Any] = []
        cursors = {node: self._cursors.get(node, "0") for node in node_ids}
        pages = {node: 1 if node in self._greedy else FIRST_PAGE for node in cursors}
        rings = [_read({self._bell: self._bell_cursor})] if cursors else []
        with map_errors(self._connection.url):
            while before or pages:
                reads = [*self._reads(cursors, pages)]
                commands = [*before, *(command for command, _ in reads), *rings]
                limits = [MOST_ANSWER] * len(before)
                limits += [MOST_ANSWER if pages[nodes[0]] > 1 else 2 * MOST_ENTRY for _, nodes in reads]
                more: dict[int, int] = {}
                answers = self._sockets.stream(commands, [*limits, _MOST_RINGS])
                deleted += islice(answers, len(before))
                for (_, nodes), answer in zip(reads, answers, strict=False):
                    more |= self._take_page(answer, nodes, pages, cursors, take)
                for answer in answers:
                    self._take_rings(answer)
                before, rings = [], []
                pages = {node: 1 if node in self._greedy else page for node, page in more.items()}
        return self._is_done(deleted)

    @property
    def _sockets(self) -> Sockets:
        """Of the server that has the run."""
        return self._connection.at(self._bell).sockets

    def _deletion(self, settled: Sequence[Settled]) -> list[Command]:
        """Return the commands that delete replies. Payloads that are on other servers are deleted at once."""
        keys, pipe = self._connection.keys, self._sockets.pipe()
        remove_replies(pipe, keys, self._run_id, settled)
        elsewhere = []
        for key, remove in remove_chunks(keys, self._run_id, settled):
            if self._connection.shares_slot(key, self._bell):
                remove(pipe)
            else:
                elsewhere.append((key, remove))
        send_echoes(self._connection, elsewhere)
        return commands_of(pipe)

    def _reads(self, cursors: Mapping[int, str], pages: Mapping[int, int]) -> Iterator[tuple[Command, list[int]]]:
        """Yield the commands that read a page of each outbox, with the nodes of each."""
        nodes = sorted(pages, key=pages.__getitem__)
        while nodes:
            count = pages[nodes[0]]
            some = [node for node in nodes[: PAGE_STREAMS if count == FIRST_PAGE else 1] if pages[node] == count]
            nodes = nodes[len(some) :]
            streams = {self._connection.keys.outbox(node, self._run_id): cursors[node] for node in some}
            yield _read(streams, count=count), some

    def _take_page(
        self,
        answer: Any,
        nodes: Sequence[int],
        pages: Mapping[int, int],
        cursors: dict[int, str],
        take: Callable[[Iterable[Reply]], None],
    ) -> dict[int, int]:
        """Take in one answer; return the nodes whose outboxes may have more, and how many entries to read next."""
        is_cut = isinstance(answer, OversizeError)
        if is_cut or (isinstance(answer, ResponseError) and translate(answer, self._connection.url) is None):
            if len(nodes) > 1 or pages[nodes[0]] > 1:  # a node that spoilt its outbox must not stop the others
                return dict.fromkeys(nodes, 1)
            self._greedy.update(nodes)
            return self._skip(nodes[0], cursors, take) if is_cut else {}
        by_key = {self._connection.keys.outbox(node, self._run_id): node for node in nodes}
        found: dict[int, list[Reply]] = {}
        for key, entry_id, fields in entries(found_or_none(answer, self._connection.url)):
            found.setdefault(by_key[key], []).append((by_key[key], entry_id, fields))
        for node, replies in found.items():
            cursors[node] = replies[-1][1]
            if any(size_of(fields) > MOST_ENTRY for _, _, fields in replies):
                self._greedy.add(node)
            take(replies)
        self._answered |= found.keys()
        return {
            node: 1 if pages[node] == 1 else LONG_PAGE for node, replies in found.items() if len(replies) >= pages[node]
        }

    def _skip(self, node: int, cursors: dict[int, str], take: Callable[[Iterable[Reply]], None]) -> dict[int, int]:
        """Take an entry that is too large as one that says nothing: that answers no message, and is deleted."""
        key = self._connection.keys.outbox(node, self._run_id)
        entry_id = id_behind(self._connection, key, cursors[node])
        if entry_id is None:
            return {}
        warn(key, entry_id)
        cursors[node] = entry_id
        take([(node, entry_id, {})])
        return {node: 1}

    def _is_done(self, deleted: list[Any]) -> bool:
        """Whether nothing has to be repeated: Redis may be unable to write now, but an ACL that forbids it is final."""
        errors = [translate(answer, self._connection.url) for answer in deleted if isinstance(answer, Exception)]
        refusal = next(filter(None, errors), None)
        if refusal is not None and not self._is_refused:
            log(WARNING, "Settled replies cannot be deleted: %s", refusal)
        self._is_refused = refusal is not None
        return not isinstance(refusal, RedisUnreachable)

    def is_new(self, node_id: int, entry_id: str, generation: int) -> bool:
        """Return whether a reply was not read yet, by another thread that read it as well.

        What has a forged id, and what follows it, is read again each time: it is recognised, or deleted.
        """
        place = place_of(entry_id)
        return generation != self.generation or place >= FORGED or place > self._places.get(node_id, (0, 0))

    def advance(self, node_id: int, entry_id: str, generation: int) -> None:
        """Note that a reply was read, with everything before it."""
        place = place_of(entry_id)
        if generation == self.generation and place < FORGED:  # behind which nothing real would be read
            self._cursors[node_id], self._places[node_id] = entry_id, place


def _read(streams: Mapping[str, str], block: float | None = None, count: int = _RINGS) -> Command:
    blocking = () if block is None else ("BLOCK", max(1, round(block * 1000)))
    return "XREAD", "COUNT", count, *blocking, "STREAMS", *streams, *streams.values()


def remove_replies(pipe: Pipeline, keys: Keys, run_id: int, settled: Iterable[Settled]) -> None:
    """Put into ``pipe`` the deletion of replies; their payloads are in other slots."""
    outboxes: dict[int, list[str]] = {}
    for node, entry_id, _ in settled:
        outboxes.setdefault(node, []).append(entry_id)
    for node, ids in outboxes.items():
        for batch in batches(ids):
            pipe.xdel(keys.outbox(node, run_id), *batch)


def read_reply(connection: Connection, node_id: int, run_id: int, entry_id: str) -> dict[bytes, bytes] | None:
    """Return the fields of a reply that was read before; None if it is gone."""
    [(_, fields)] = entries_at(connection, connection.keys.outbox(node_id, run_id), [entry_id])
    return fields or None
