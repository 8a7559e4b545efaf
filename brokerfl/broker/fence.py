"""The fence: who may write a run, checked in the same transaction as every write.

Owns the run's `owner` key: ``counter:token:sequence``. It must not know what is written behind it.

A takeover and a stop add one to the counter, and from then on every transaction of the former owner fails. Each
transaction adds one to the sequence: an owner that finds a lower one knows that Redis forgot some, even if it failed
over behind a proxy and no connection broke. The end of a run leaves a tombstone, ``counter:ended:time`` or
``counter:stopped:time``. So a run without an owner was forgotten, or has expired; it has not ended.

The owner key is watched, not the lease: a renewal of the lease would break the WATCH, and a frozen process does not
notice that it lapsed.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from brokerfl.broker.connection import Connection
from brokerfl.broker.echoes import Echo, send_echoes
from brokerfl.broker.failure import map_errors
from brokerfl.broker.keys import RETENTION, milliseconds
from brokerfl.broker.ownership import ENDED, STOPPED, Ownership, ownership_in
from brokerfl.broker.patience import holding
from brokerfl.broker.runs import absent
from brokerfl.broker.sockets import Command, commands_of
from brokerfl.common import (
    BrokerflError,
    RedisOutOfMemory,
    RedisUnreachable,
    RunFenced,
    RunLost,
    RunNotFound,
    RunStopped,
    log,
)

#: Seconds that a transaction waits for replicas.
_PATIENCE = 1.0

#: Puts commands into the pipeline it is given; may be called again.
Build = Callable[[Pipeline], Any]


def _nothing(pipe: Pipeline) -> None:
    """Put nothing into ``pipe``."""


@dataclass(frozen=True)
class Transaction:
    """What a run's owner does in one MULTI … EXEC, and what follows from it; `transactions` lists them all.

    Attributes:
        name: what it does.
        run: what is done in the run's slot; that decides.
        echoes: what follows in other slots: see `echoes`.
        answers: of how many commands in the run's slot, the last ones, the results are wanted.
        frees: the commands only read and delete. A full Redis 7.0 refuses even those inside a MULTI, so they are then
            run without one, right after the owner was checked: a takeover in between would not be noticed.
        ends: it is the owner's last one, which gives its socket back.
    """

    name: str
    run: Build = _nothing
    echoes: Sequence[Echo] = ()
    answers: int = 0
    frees: bool = False
    ends: bool = False


class RedisForgot(Exception):  # noqa: N818  (it says what Redis did)
    """Redis forgot its last writes: it knows neither this owner nor a later one, or not all of its transactions."""


def watched_owner(pipe: Pipeline, connection: Connection, run_id: int) -> Ownership:
    """Return whose a run is, which somebody is about to take; if that changes, the MULTI of ``pipe`` does nothing.

    Raises:
        RunNotFound: there is no such run, or it has ended.
        RunLost: brokerfl has not written what the owner key holds.
        RedisError: as redis-py, for `map_errors`.
    """
    key = connection.keys.owner(run_id)
    pipe.watch(key)  # type: ignore[no-untyped-call]
    value: Any = pipe.get(key)
    owner = ownership_in(value) if value is not None else None
    if owner is None or owner.is_over:
        raise RunNotFound(absent(connection, run_id))
    return owner


class Fence:
    """Runs transactions in the name of one owner of one run. Safe to share between threads.

    Args:
        connection: to the run's Redis.
        run_id: the run.
        counter: the number of this owner; the first has 1.
        token: identifies this owner.
        retention: seconds that the owner key lives if it has to be written again.
    """

    def __init__(
        self, connection: Connection, run_id: int, counter: int, token: str, retention: float = RETENTION
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._key = connection.keys.owner(run_id)
        self._owner = Ownership(counter, token)
        self._sequence = 0
        self._retention = retention
        self._lock = threading.RLock()
        self._watch: tuple[Command, ...] = (("WATCH", self._key), ("GET", self._key))
        self._after: tuple[Command, ...] = self._watch
        self._replicas, self._is_behind = 0, False
        self._socket: Any = None
        self._sockets: Any = None  # whose that is
        self._is_watching = False
        self._seen: bytes | None = None

    @property
    def counter(self) -> int:
        """The number of this owner."""
        return self._owner.counter

    @property
    def name(self) -> str:
        """Who this owner is: what its lease holds."""
        return self._owner.name

    @property
    def value(self) -> str:
        """What the owner key holds before this owner's first transaction."""
        return str(self._owner)

    def execute(self, transaction: Transaction, *, reclaims: bool = False) -> list[Any]:
        """Run a transaction if this owner may still write.

        Args:
            transaction: what to do.
            reclaims: if Redis forgot this owner, write it again in the same transaction.

        Returns:
            The results that the transaction asks for. The error of a single command takes the place of its result, such
            as WRONGTYPE if a node changed the type of one of its own keys; it does not stop the other commands.

        Raises:
            RunStopped, RunFenced, RunLost: this owner may no longer write; nothing was written.
            RedisForgot: Redis no longer knows this owner, or not all of its transactions; nothing was written.
            RedisUnreachable: unknown whether it was written.
            RedisOutOfMemory: nothing was written.
        """
        results = holding(self._lock, lambda: self._execute_or_free(transaction, reclaims))
        send_echoes(self._connection, transaction.echoes)
        return results[len(results) - transaction.answers :]

    def _execute_or_free(self, transaction: Transaction, reclaims: bool) -> list[Any]:
        try:
            return self._execute(transaction, reclaims)
        except RedisOutOfMemory:
            if not transaction.frees:
                raise
        try:
            return self._execute(transaction, reclaims, counts=False)
        except RedisOutOfMemory:
            return self._execute_outside(transaction.run)

    def _execute(self, transaction: Transaction, reclaims: bool, *, counts: bool = True) -> list[Any]:
        """Execute the MULTI; it ``counts`` where that is possible: a full Redis refuses a SET."""
        with map_errors(self._connection.url):
            try:
                while True:
                    if self._is_forgotten(self._watched(), reclaims):
                        counts = True
                    pipe, lives = self._sockets.pipe(), milliseconds(self._retention)
                    following = self._owner._replace(sequence=self._sequence + 1)
                    if counts:
                        pipe.set(self._key, str(following), px=lives)
                    else:
                        pipe.pexpire(self._key, lives)
                    transaction.run(pipe)
                    results = self._transact(commands_of(pipe), () if transaction.ends else self._after)
                    if results is not None:
                        if counts:
                            self._sequence = following.sequence
                        if transaction.ends:
                            self._give_back()
                        return results[1:]
                    # The key's lifetime was renewed, or the owner changed: look again.
            except (BrokerflError, ResponseError, RedisForgot):
                self._is_watching = False
                raise
            except BaseException:
                self._drop()
                raise

    def _watched(self) -> bytes | None:
        """Return what the owner key holds, or held when it was watched: if it changes, the next EXEC does nothing.

        The key is watched again right after each EXEC, in the same round trip. On a new socket nothing is watched.
        """
        if self._socket is not None and not self._socket.is_connected:
            self._drop()
        if not self._is_watching:
            if self._socket is None:
                self._sockets = self._connection.at(self._key).sockets
                self._socket = self._sockets.take()
                self._sockets.leave_one()
            refusal = self._note(self._sockets.talk(self._socket, self._watch))
            if refusal is not None:
                raise refusal
        return self._seen

    def _transact(self, commands: list[Command], after: Sequence[Command]) -> list[Any] | None:
        results: list[Any] | None
        results, watched = self._sockets.transact_on(self._socket, commands, after)
        if after:
            self._note(watched)
            self._look_behind(watched[0])
        else:
            self._is_watching = False  # EXEC ended it
        return results

    def await_replicas(self, count: int) -> None:
        """From now on wait after each transaction until so many replicas have it, for at most `_PATIENCE` seconds."""
        self._replicas, self._after = count, (("WAIT", count, milliseconds(_PATIENCE)), *self._watch)

    def _look_behind(self, answer: Any) -> None:
        is_behind = isinstance(answer, int) and answer < self._replicas
        if is_behind and not self._is_behind:
            text = "%s of %s replicas have what run %s did last; going on, but a fail-over may lose it"
            log(WARNING, text, answer, self._replicas, self._run_id)
        self._is_behind = is_behind

    def _note(self, watched: list[Any]) -> Exception | None:
        refusal = next(filter(lambda answer: isinstance(answer, Exception), watched), None)
        self._is_watching = refusal is None
        self._seen = watched[-1] if refusal is None else None
        return refusal

    def close(self) -> None:
        """Give the socket back, without its WATCH: this owner detached. Redis may be unreachable."""
        with suppress(RedisError, OSError, RedisUnreachable):
            holding(self._lock, self._unwatch)

    def _unwatch(self) -> None:
        if self._socket is None:
            return
        try:
            self._sockets.talk(self._socket, [("UNWATCH",)])
        except BaseException:
            self._drop()
            raise
        self._give_back()

    def _give_back(self) -> None:
        self._sockets.give(self._socket)
        self._socket, self._is_watching = None, False

    def _drop(self) -> None:
        self._is_watching = False
        if self._socket is not None:
            self._sockets.drop(self._socket)
            self._socket = None

    def _is_forgotten(self, owner: bytes | None, reclaims: bool) -> bool:
        try:
            self._sequence = self.check(owner, self._sequence)
            return False
        except RedisForgot:
            if not reclaims:
                raise
            return True

    def _execute_outside(self, build: Build) -> list[Any]:
        with map_errors(self._connection.url):
            self.look()
            sockets = self._connection.at(self._key).sockets
            pipe = sockets.pipe()
            build(pipe)
            return sockets.exchange(commands_of(pipe))

    def seal(self) -> None:
        """Make sure that no transaction of this owner that is still on its way takes effect.

        A connection that timed out may deliver its EXEC minutes later, when it was repeated and the run has moved on.
        Every transaction writes the owner key, which breaks that connection's WATCH.

        Raises:
            RunStopped, RunFenced, RunLost, RedisForgot, RedisUnreachable: as for `execute`.
        """
        self.execute(Transaction("seal", frees=True))

    def look(self) -> None:
        """Ask Redis who the owner is, and check it.

        Raises:
            RunStopped, RunFenced, RunLost, RedisForgot: as for `check`.
            RedisUnreachable: Redis does not answer.
        """
        known = self._sequence  # before Redis is asked: other threads go on
        with map_errors(self._connection.url):
            owner = self._connection.at(self._key).redis.get(self._key)
        self.check(owner, known)

    def check(self, value: bytes | None, known: int = 0) -> int:
        """Check what the owner key holds; return the sequence.

        Args:
            value: what was read.
            known: how many transactions this owner had made before it asked.

        Raises:
            RunStopped, RunFenced, RunLost: the run no longer belongs to this owner.
            RedisForgot: Redis no longer knows this owner, or not all of its transactions.
        """
        if value is None:
            raise RedisForgot
        owner, run = ownership_in(value), f"run {self._run_id}"
        if owner.token == STOPPED:
            raise RunStopped(f"{run} was stopped")
        if owner.token == ENDED:
            raise RunLost(f"{run} has ended")
        if owner.name == self._owner.name:
            if owner.sequence < known:
                raise RedisForgot
            return owner.sequence
        if owner.counter < self._owner.counter:
            raise RedisForgot
        if owner.is_stopping:
            raise RunStopped(f"{run} was stopped")
        raise RunFenced(f"{run} was taken over by another ServerApp")
