"""The fence: who may write a run, checked in the same transaction as every write.

Owns the run's `owner` key: ``counter:token``. A takeover and a stop add one to the counter, and from then on every
transaction of the former owner fails. It must not know what is written behind it.

The owner key is watched, not the lease: a renewal of the lease would break the WATCH, and a frozen process does not
notice that it lapsed.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.keys import RETENTION, milliseconds
from brokerfl.broker.patience import holding
from brokerfl.broker.sockets import Command, commands_of
from brokerfl.common import BrokerflError, RedisOutOfMemory, RedisUnreachable, RunFenced, RunLost, RunStopped

#: What a stop writes instead of a token.
STOP = "stop"


#: Puts commands into the pipeline it is given; may be called again.
Build = Callable[[Pipeline], Any]


class Slot(Enum):
    """Whose keys a step of a transaction touches. On a Cluster, keys of different slots are on different servers."""

    RUN = "run"  # `P:{run:R}:…` and the bell
    NODE = "node"  # `P:{N}:…`, of any number of nodes
    OWN = "own"  # chunks, and the registry: a slot each


@dataclass(frozen=True)
class Transaction:
    """What a run's owner does in one MULTI … EXEC; `transactions` lists them all.

    Attributes:
        name: what it does.
        steps: its commands in their order, divided by the slots they touch.
        answers: of how many commands, the last ones, the results are wanted.
        frees: the commands only read and delete. A full Redis 7.0 refuses even those inside a MULTI, so they are then
            run without one, right after the owner was checked: a takeover in between would not be noticed.
        ends: it is the owner's last one, which gives its socket back.
    """

    name: str
    steps: tuple[tuple[Slot, Build], ...]
    answers: int = 0
    frees: bool = False
    ends: bool = False

    def build(self, pipe: Pipeline) -> None:
        """Put all commands into ``pipe``."""
        for _, step in self.steps:
            step(pipe)


class RedisForgot(Exception):  # noqa: N818  (it says what Redis did)
    """Redis knows neither this owner nor a later one: it forgot its last writes, or the run is over.

    Attributes:
        is_gone: there is no owner at all.
    """

    def __init__(self, is_gone: bool) -> None:
        self.is_gone = is_gone
        super().__init__()


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
        self._counter = counter
        self._token = token
        self._retention = retention
        self._lock = threading.RLock()
        self._watch = (("WATCH", self._key), ("GET", self._key))
        self._socket: Any = None
        self._is_watching = False
        self._owner: bytes | None = None

    @property
    def value(self) -> str:
        """What the owner key holds while this owner may write."""
        return f"{self._counter}:{self._token}"

    def execute(self, transaction: Transaction, *, reclaims: bool = False) -> list[Any]:
        """Run a transaction if this owner may still write.

        Args:
            transaction: what to do.
            reclaims: if Redis forgot this owner, write it again in the same transaction.

        Returns:
            The results that the transaction asks for. The error of a single command takes the place of its result, such
            as WRONGTYPE if a node changed the type of one of its own keys; it does not stop the other commands.

        Raises:
            RunStopped, RunFenced: this owner may no longer write; nothing was written.
            RedisForgot: Redis no longer knows this owner; nothing was written.
            RunLost: the run was ended elsewhere; only with ``reclaims``.
            RedisUnreachable: unknown whether it was written.
            RedisOutOfMemory: nothing was written.
        """
        results = holding(self._lock, lambda: self._execute_or_free(transaction, reclaims))
        return results[len(results) - transaction.answers :]

    def _execute_or_free(self, transaction: Transaction, reclaims: bool) -> list[Any]:
        try:
            return self._execute(transaction, reclaims)
        except RedisOutOfMemory:
            if not transaction.frees:
                raise
            return self._execute_outside(transaction.build)

    def _execute(self, transaction: Transaction, reclaims: bool) -> list[Any]:
        with map_errors(self._connection.url):
            try:
                while True:
                    owner = self._watched()
                    forgotten = self._is_forgotten(owner, reclaims)
                    pipe = self._connection.sockets.pipe()
                    if forgotten:
                        pipe.set(self._key, self.value, px=milliseconds(self._retention))
                    transaction.build(pipe)
                    results = self._transact(commands_of(pipe), () if transaction.ends else self._watch)
                    if results is not None:
                        if transaction.ends:
                            self._give_back()
                        return results[1:] if forgotten else results
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
                self._socket = self._connection.sockets.take()
                self._connection.sockets.leave_one()
            refusal = self._note(self._connection.sockets.talk(self._socket, self._watch))
            if refusal is not None:
                raise refusal
        return self._owner

    def _transact(self, commands: list[Command], after: Sequence[Command]) -> list[Any] | None:
        results, watched = self._connection.sockets.transact_on(self._socket, commands, after)
        if after:
            self._note(watched)
        else:
            self._is_watching = False  # EXEC ended it
        return results

    def _note(self, watched: list[Any]) -> Exception | None:
        refusal = next(filter(lambda answer: isinstance(answer, Exception), watched), None)
        self._is_watching = refusal is None
        self._owner = watched[-1] if refusal is None else None
        return refusal

    def close(self) -> None:
        """Give the socket back, without its WATCH: this owner detached. Redis may be unreachable."""
        with suppress(RedisError, OSError, RedisUnreachable):
            holding(self._lock, self._unwatch)

    def _unwatch(self) -> None:
        if self._socket is None:
            return
        try:
            self._connection.sockets.talk(self._socket, [("UNWATCH",)])
        except BaseException:
            self._drop()
            raise
        self._give_back()

    def _give_back(self) -> None:
        self._connection.sockets.give(self._socket)
        self._socket, self._is_watching = None, False

    def _drop(self) -> None:
        self._is_watching = False
        if self._socket is not None:
            self._connection.sockets.drop(self._socket)
            self._socket = None

    def _is_forgotten(self, owner: bytes | None, reclaims: bool) -> bool:
        try:
            self.check(owner)
            return False
        except RedisForgot:
            if not reclaims:
                raise
        # The end of a run deletes the owner and sets the mark in one transaction, so the mark is reliable here.
        if owner is None:
            [score] = self._connection.sockets.talk(
                self._socket, [("ZSCORE", self._connection.keys.runs, str(self._run_id))]
            )
            self._check_score(None if score is None else float(score))
        return True

    def _check_score(self, score: Any) -> None:
        if score is not None and score < 0:
            if score % 1:
                raise RunStopped(f"run {self._run_id} was stopped")
            raise RunLost(f"run {self._run_id} was ended by another ServerApp")

    def explain(self) -> None:
        """Raise the reason why the run no longer has an owner.

        Raises:
            RunStopped, RunLost: always one of them.
        """
        with map_errors(self._connection.url):
            score = self._connection.redis.zscore(self._connection.keys.runs, str(self._run_id))
        self._check_score(score)
        raise RunLost(f"run {self._run_id} is gone from Redis: it was deleted, or it expired")

    def _execute_outside(self, build: Build) -> list[Any]:
        with map_errors(self._connection.url):
            self.look()
            pipe = self._connection.sockets.pipe()
            build(pipe)
            return self._connection.sockets.exchange(commands_of(pipe))

    def seal(self) -> None:
        """Make sure that no transaction of this owner that is still on its way takes effect.

        A connection that timed out may deliver its EXEC minutes later, when it was repeated and the run has moved on.
        Renewing the key's lifetime breaks that connection's WATCH, and is allowed when memory is full.

        Raises:
            RunStopped, RunFenced, RedisForgot, RedisUnreachable: as for `execute`.
        """
        lives = milliseconds(self._retention)
        self.execute(Transaction("seal", ((Slot.RUN, lambda pipe: pipe.pexpire(self._key, lives)),), frees=True))

    def look(self) -> None:
        """Ask Redis who the owner is, and check it.

        Raises:
            RunStopped, RunFenced: the run no longer belongs to this owner.
            RedisForgot: Redis no longer knows this owner.
            RedisUnreachable: Redis does not answer.
        """
        with map_errors(self._connection.url):
            owner = self._connection.redis.get(self._key)
        self.check(owner)

    def check(self, owner: bytes | None) -> None:
        """Check a value read from the owner key.

        Raises:
            RunStopped, RunFenced: the run no longer belongs to this owner.
            RedisForgot: Redis no longer knows this owner.
        """
        if owner is None:
            raise RedisForgot(is_gone=True)
        counter, _, token = owner.decode().partition(":")
        if token == self._token and int(counter) == self._counter:
            return
        if int(counter) < self._counter:
            raise RedisForgot(is_gone=False)
        if token.startswith(STOP):
            raise RunStopped(f"run {self._run_id} was stopped")
        raise RunFenced(f"run {self._run_id} was taken over by another ServerApp")
