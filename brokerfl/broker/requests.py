"""Requests: what an operator asks of a run, whether or not its ServerApp is alive.

Owns how a request is left in the run's keys: that it push nothing any more, and which messages it is to cancel. It must
not know how the run's ServerApp heeds it. Only that one writes the run's books.
"""

from collections.abc import Callable, Collection, Iterable

from redis.client import Pipeline

from brokerfl.broker.books import ledger_of, note_drain
from brokerfl.broker.bounded import OversizeError
from brokerfl.broker.connection import Connection
from brokerfl.broker.ending import read_run
from brokerfl.broker.failure import execute_unless_changed, found_or_none, map_errors
from brokerfl.broker.fence import Transaction
from brokerfl.broker.keys import BELL_LENGTH, Keys
from brokerfl.broker.ownership import ownership_in
from brokerfl.broker.runs import absent
from brokerfl.broker.stream import batches
from brokerfl.common import MessageNotFound, RunNotFound, RunStopped
from brokerfl.common.text import shown
from brokerfl.wire.message import is_message_id

#: Most bytes of all ids that somebody asks to cancel at once.
_MOST = 8 * 1024 * 1024

#: Digits with which an id is named, if no other one begins so.
_LEAST = 8


def drain_run(connection: Connection, run_id: int) -> None:
    """Ask a run to push nothing any more. Its ServerApp hears of it by the bell; one that resumes it, by the books.

    Raises:
        RunNotFound: there is no such run, or it has ended.
        RunStopped: it is being stopped.
        RedisOutOfMemory: Redis is full.
        FrameError: the run was created by another version.
    """
    read_run(connection, run_id)
    _ask(connection, run_id, lambda pipe, lives: note_drain(pipe, connection.keys, run_id))


def cancel_messages(
    connection: Connection, run_id: int, message_ids: Iterable[str] = (), node_id: int | None = None
) -> list[str]:
    """Ask a run to cancel messages. Its ServerApp hears of it by the bell; one that resumes it finds it.

    Args:
        connection: to its Redis.
        run_id: the run.
        message_ids: their ids, or at least eight digits with which only one id begins.
        node_id: all messages that the run has at this node.

    Returns:
        The ids of those that it asked for. Replies that are already there count all the same.

    Raises:
        MessageNotFound: the run has no such message that is not settled, or several; nothing is asked for.
        RunNotFound, RunStopped, RedisOutOfMemory, FrameError: as `drain_run`.
    """
    read_run(connection, run_id)
    ledger = ledger_of(connection, run_id)
    chosen = [_called(text, ledger, run_id) for text in message_ids]
    if node_id is not None:
        chosen += [message_id for message_id, entry in ledger.items() if entry.node_id == node_id]
    key, asked = connection.keys.cancelled(run_id), [*dict.fromkeys(chosen)]

    def ask(pipe: Pipeline, lives: int) -> None:
        for some in batches(asked):
            pipe.sadd(key, *some)
        pipe.pexpire(key, lives)

    if asked:
        _ask(connection, run_id, ask)
    return asked


def _called(text: str, ledger: Collection[str], run_id: int) -> str:
    beginning = text.removesuffix("…")
    found = [each for each in ledger if each == text] or [
        each for each in ledger if len(beginning) >= _LEAST and each.startswith(beginning)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise MessageNotFound(f"{text!r} may be one of {len(found)} messages of run {run_id}; give more of the id")
    raise MessageNotFound(f"run {run_id} has no message {shown(text)!r} that is not settled; the log has their ids")


def _ask(connection: Connection, run_id: int, put: Callable[[Pipeline, int], None]) -> None:
    """Write a request and ring the run. ``put`` is told how many milliseconds the run's keys live."""
    keys = connection.keys
    redis = connection.at(keys.owner(run_id)).redis
    with map_errors(connection.url), redis.pipeline(transaction=True) as pipe:
        while True:
            pipe.watch(keys.owner(run_id))
            value, lives = pipe.get(keys.owner(run_id)), pipe.pttl(keys.owner(run_id))
            owner = ownership_in(value) if value is not None else None
            if owner is None or owner.is_over:
                raise RunNotFound(absent(connection, run_id))
            if owner.is_stopping:
                raise RunStopped(f"run {run_id} is being stopped")
            pipe.multi()
            put(pipe, lives)
            pipe.xadd(keys.bell(run_id), {"n": ""}, maxlen=BELL_LENGTH, nomkstream=True)
            if execute_unless_changed(pipe):
                return


def asked_to_cancel(connection: Connection, run_id: int) -> set[str]:
    """Return the ids of the messages that somebody asked a run to cancel, and that it has not had off its books since.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    key = connection.keys.cancelled(run_id)
    with map_errors(connection.url):
        [answer] = connection.at(key).sockets.exchange([("SMEMBERS", key)], [_MOST])
    members = () if isinstance(answer, OversizeError) else found_or_none(answer, connection.url) or ()
    texts = (member.decode(errors="replace") for member in members)
    return {text for text in texts if is_message_id(run_id, text)}


def heeded(keys: Keys, run_id: int, message_ids: Collection[str]) -> Transaction:
    """Return what notes that these messages are off the run's books, so that nobody needs to cancel them."""

    def run(pipe: Pipeline) -> None:
        for some in batches(message_ids):
            pipe.srem(keys.cancelled(run_id), *some)

    return Transaction("heeded", run, frees=True)
