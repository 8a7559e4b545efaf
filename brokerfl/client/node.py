"""The node: reads its inboxes, has messages executed, publishes the replies.

Owns the loop. It must not know the commands that Redis is sent, or what a message says.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from logging import INFO, WARNING

import tenacity

from brokerfl.broker.connection import BLOCK, Connection
from brokerfl.broker.heartbeat import Heartbeat
from brokerfl.broker.inbox import Delivery, Inboxes, discard_message, is_wanted, ring_doorbell
from brokerfl.broker.nodes import Registration
from brokerfl.broker.outbox import upload
from brokerfl.client.app import ClientApp
from brokerfl.client.executor import Executor
from brokerfl.client.journal import Journal
from brokerfl.client.publisher import Publisher
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import BrokerflError, NodeNameTaken, RedisOutOfMemory, RedisUnreachable, UserConfig, log
from brokerfl.wire.frame import Fields
from brokerfl.wire.message import message_id_of

#: Seconds of work to read ahead. A node whose messages take longer than this reads one of each run at a time, so that
#: runs take turns fairly; one whose messages are tiny reads many in one round trip.
READ_AHEAD = 0.05
_MOST_READ = 64

#: How often a message may kill its node before it is answered with Error 8.
MAX_CRASHES = 3


class Node:
    """Serves every run with one ClientApp, until `stop`.

    Args:
        app: the ClientApp.
        connection: the Redis in the middle.
        registration: the node's claim to its id.
        node_config: given to every Context.
        on_ready: called once the node is registered and about to read.
        journal: what the node must not forget; in memory by default.
        max_crashes: how often a message may kill the node before it is answered with Error 8.
    """

    def __init__(
        self,
        app: ClientApp,
        connection: Connection,
        registration: Registration,
        node_config: UserConfig | None = None,
        on_ready: Callable[[], None] = lambda: None,
        journal: Journal | None = None,
        max_crashes: int = MAX_CRASHES,
    ) -> None:
        self.node_id = registration.node_id
        self._connection = connection
        self._registration = registration
        self._on_ready = on_ready
        self._journal = journal or Journal()
        self._identity = b""
        self._executor = Executor(
            app, connection, self.node_id, node_config or {}, self._journal, max_crashes, self._upload
        )
        self._worklist = Worklist()
        self._inboxes = Inboxes(connection, self.node_id, self._take_runs)
        self._publisher = Publisher(connection, self.node_id, self._settled, self._fail, self.is_stopping)
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._losses = -1
        self._pace = READ_AHEAD
        self._settling = threading.Lock()

    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Finish the message in hand, publish it, leave. May be called from a signal handler or any thread."""
        self._stopping.set()

    def abandon(self) -> None:
        """The process is about to end in the middle of a message, on purpose: the message stays the node's."""
        self._journal.forgive()

    def serve(self) -> None:
        """Register and serve until `stop`.

        Raises:
            NodeNameTaken: another process holds the name, now or since this one was frozen.
            RedisAuthError, RedisTLSError: Redis does not let us in.
            ConfigError: the journal cannot be used.
        """
        self.register()
        heartbeat = Heartbeat(
            f"heartbeat of node {self.node_id}", self._registration.lease / 3, self._renew, self._fail
        )
        waker = threading.Thread(target=self._wake_when_stopping, name="waker", daemon=True)
        heartbeat.start()
        waker.start()
        try:
            if not self.is_stopping():
                self._on_ready()
            while not self.is_stopping():
                self.turn(min(BLOCK, self._registration.lease / 2))
        finally:
            self.stop()
            heartbeat.stop()
            waker.join()
            self.leave()
        if self._failure is not None:
            raise self._failure

    def register(self) -> None:
        """Take the node's id, and open the journal that belongs to this Redis.

        Raises:
            NodeNameTaken, ConfigError: see `serve`.
        """
        self._registration.register(self.is_stopping)
        if not self.is_stopping():
            self._choose_journal()

    def _wake_when_stopping(self) -> None:
        """A blocking read ends when the node rings its own doorbell: no signal has to tear it apart."""
        self._stopping.wait()
        self._ring()

    def _ring(self) -> None:
        try:
            ring_doorbell(self._connection, self.node_id)
        except BrokerflError:
            return  # then nothing is being read either

    def leave(self) -> None:
        """Publish what is finished, give up the id, and let go of the journal."""
        try:
            self._publisher.close()
            self._registration.leave()
        except BrokerflError as error:
            log(WARNING, "The node left without telling Redis: %s", error)
        if isinstance(self._failure, NodeNameTaken):
            self._ring()  # whoever has the name now takes up what this process read without having executed it
        self._journal.close()

    def _renew(self) -> None:
        if not self._registration.renew():
            raise NodeNameTaken(f"another process took over node {self.node_id} while this one did not answer")

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self.stop()

    # The loop.

    def turn(self, block: float) -> None:
        """Read, waiting ``block`` seconds for a message, and work off one; wait while Redis is away."""
        try:
            self._turn(block)
        except (RedisUnreachable, RedisOutOfMemory):
            self._losses = -1
            self._connection.wait_until_up(float("inf"), self.is_stopping)
        except NodeNameTaken as error:
            self._fail(error)

    def _turn(self, block: float) -> None:
        losses = self._connection.losses
        if losses != self._losses:
            self._renew()
            self._choose_journal()
            self._publisher.flush()
            self._take(self._inboxes.drain())
            self._losses = losses
        if not self._worklist:
            self._take(self._inboxes.read(self._read_ahead(), block))
        if self._registration.is_due():  # frozen, or Redis was away: somebody else may hold the lease
            self._renew()
        if self._registration.identity != self._identity:
            self._losses = -1  # the data are gone without a connection having broken
        elif self._worklist and not self.is_stopping():
            self._work()
        self._executor.release()

    def _choose_journal(self) -> None:
        """The local state belongs to one Redis data set."""
        identity = self._registration.identity
        if identity == self._identity:
            return
        if self._identity:
            log(WARNING, "Redis at %s lost its data, or is another one: the node starts afresh", self._connection.url)
        strange = self._journal.open(identity)
        if strange and not self._identity:
            log(WARNING, "The state directory belongs to another Redis, or one that lost its data; starting afresh")
        self._identity = identity
        self._executor.start_afresh()
        self._publisher.clear()
        with self._settling:
            self._worklist.clear()

    def _read_ahead(self) -> int:
        return max(1, min(_MOST_READ, int(READ_AHEAD / self._pace)))

    def _take(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            message_id = message_id_of(delivery.fields)
            if message_id:
                with self._settling:
                    self._worklist.add(delivery, message_id)
                continue
            if delivery.fields:  # without any, the ServerApp took it back after it had been delivered
                log(WARNING, "An entry of run %s names no message; it is removed", delivery.run_id)
            discard_message(self._connection, self.node_id, delivery.run_id, delivery.entry_id)

    def _settled(self, work: Work, entries: tuple[str, ...]) -> None:
        with self._settling:
            late = self._worklist.done(work, entries)
        for entry in late:
            with suppress(RedisUnreachable):  # then it stays pending, and the next drain finds it
                discard_message(self._connection, self.node_id, work.run_id, entry)

    def _take_runs(self, frames: dict[int, bytes]) -> None:
        """Learn of new runs; drop what is queued for those that are over."""
        self._executor.take_runs(frames)
        with self._settling:
            self._worklist.keep_only(frames)

    def _work(self) -> None:
        with self._settling:
            work = self._worklist.next()
        try:
            reply = self._execute(work)
        except (RedisUnreachable, RedisOutOfMemory):  # its entry is known, so a drain would not queue it again
            with self._settling:
                self._worklist.put_back(work)
            raise
        if reply is None:
            self._settled(work, ())
        else:
            self._publisher.put(work, reply, more=bool(self._worklist))

    def _execute(self, work: Work) -> Fields | None:
        started = time.monotonic()
        # It may have been cancelled while it was queued behind a slow one.
        if started - work.queued_at > READ_AHEAD and not is_wanted(
            self._connection, self.node_id, work.run_id, work.entries
        ):
            log(INFO, "A message of run %s was cancelled before it was executed", work.run_id)
            return None
        reply = self._executor.execute(work)
        self._pace = max(1e-6, time.monotonic() - started)
        return reply

    def _upload(self, run_id: int, content: Fields) -> str | None:
        """Upload the content of a large reply, through outages and a full Redis, until the node is to stop."""

        def wait(state: tenacity.RetryCallState) -> None:
            if state.outcome is not None and isinstance(state.outcome.exception(), RedisUnreachable):
                self._connection.wait_until_up(float("inf"), self.is_stopping)

        retrying = tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5.0),
            retry=tenacity.retry_if_exception_type((RedisUnreachable, RedisOutOfMemory)),
            stop=lambda _: self.is_stopping(),
            before_sleep=wait,
            sleep=time.sleep,
            reraise=True,
        )
        return retrying(lambda: upload(self._connection, self.node_id, run_id, content))
