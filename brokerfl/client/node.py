"""The node: reads its inboxes, has messages executed, publishes the replies.

Owns the loop. It must not know Redis commands, or what a message says.

With one worker, the loop's own thread executes, and reads when it has nothing left to do. With several, the loop only
reads, and the workers execute. A thread that loses Redis puts its message back; only the loop recovers from a lost
connection.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from logging import INFO, WARNING
from typing import Unpack

from brokerfl.broker.connection import BLOCK, Connection
from brokerfl.broker.contact import READ_ON, ring_doorbell
from brokerfl.broker.heartbeat import Heartbeat
from brokerfl.broker.inbox import Delivery, Inboxes, discard_message
from brokerfl.broker.nodes import Registration
from brokerfl.broker.patience import STEP, within
from brokerfl.client.app import ClientAppCallable
from brokerfl.client.executor import Executor
from brokerfl.client.intake import Intake
from brokerfl.client.journal import Journal
from brokerfl.client.options import GivenOptions, NodeOptions
from brokerfl.client.payloads import Payloads
from brokerfl.client.publisher import Publisher
from brokerfl.client.runner import Runner
from brokerfl.client.service import Service
from brokerfl.client.stop import Stop
from brokerfl.client.stuck import Stuck
from brokerfl.client.wanted import Wanted
from brokerfl.client.workers import Workers
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import BrokerflError, JournalError, NodeNameTaken, RedisOutOfMemory, RedisUnreachable, log
from brokerfl.common.log_context import log_context, name_node
from brokerfl.common.logger import trace
from brokerfl.common.text import shown_node
from brokerfl.wire.message import received_id_of

#: Seconds between two looks at what the site has decided.
_WATCH = 0.5


class Node:
    """Serves every run with one ClientApp, until `stop`.

    Args:
        app: the ClientApp, or a function with the same arguments.
        connection: to Redis.
        registration: the node's claim to its id.
        journal: what the node must not forget; in memory by default.
        on_ready: called when the node is registered and about to read.
        options: see `NodeOptions`.
    """

    def __init__(
        self,
        app: ClientAppCallable,
        connection: Connection,
        registration: Registration,
        journal: Journal | None = None,
        on_ready: Callable[[], None] = lambda: None,
        **options: Unpack[GivenOptions],
    ) -> None:
        self.node_id = registration.node_id
        name_node(self.node_id, registration.name)
        self._connection = connection
        self._registration = registration
        self._on_ready = on_ready
        self._journal = journal or Journal()
        self._identity = b""
        self._losses = -1
        self._stop = Stop()
        self._worklist = Worklist()
        self._options = chosen = NodeOptions(**options)
        guard = chosen.protection.for_node(self.node_id)
        self._payloads = Payloads(connection, self.node_id, self._stop.is_set, chosen.max_message, guard)
        self._service = self._make_service(app, chosen)
        self._activity = self._service.executor.activity
        who = shown_node(self.node_id, registration.name)
        self._stuck = Stuck(self._activity, who, chosen.stuck_limit, chosen.on_stuck)
        self._inboxes = Inboxes(connection, self.node_id, self._service.keep_only, self._worklist.entries)
        self._intake = Intake(connection, self.node_id, self._inboxes, self._worklist, self._service)
        self._site = chosen.site
        self._site.wake = self._ring
        self._workers: Workers | None = None
        if chosen.workers > 1:
            name = f"worker of node {self.node_id}"
            self._workers = Workers(chosen.workers, name, self._worklist, self._serve, self._stop.fail)

    def _make_service(self, app: ClientAppCallable, options: NodeOptions) -> Service:
        connection, node_id = self._connection, self.node_id
        origin = None if options.any_app else self._registration.origin
        runner = Runner(app, node_id, options.node_config, self._stop.is_set, origin)
        runner.site, guard = options.site, self._payloads.guard
        options.site.signer = lambda run_id: owner.signing if (owner := guard.owner_of(run_id)) is not None else None
        runner.shares_text, runner.called = options.share_errors == "text", shown_node(node_id, self._registration.name)
        wanted = Wanted(connection, node_id)
        executor = Executor(runner, self._journal, self._payloads, wanted, options.max_crashes)
        publisher = Publisher(connection, node_id, self._worklist, self._stop, self._journal.commit)
        publisher.account = options.site.account
        return Service(self._worklist, executor, publisher, wanted, options.site)

    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    @property
    def is_full(self) -> bool:
        """Whether a reply of this node waits for room in a full Redis."""
        return self._service.is_full

    def is_alive(self, within: float) -> bool:
        """Whether loop and heartbeat took a turn in the last ``within`` seconds, or the loop executes or waits."""
        return self._service.is_full or self._activity.is_turning(within, loop_executes=self._workers is None)

    def stop(self) -> None:
        """Finish the messages in hand, publish their replies, and leave. Safe in a signal handler and any thread."""
        self._stop.set()

    def abandon(self) -> None:
        """The process is about to end on purpose while it executes messages: the node keeps them."""
        self._journal.abandon()

    def serve(self) -> None:
        """Register and serve until `stop`.

        Raises:
            NodeNameTaken: another process has the name, now or since this one was frozen.
            RedisAuthError, RedisTLSError: Redis refuses the login or the connection.
            JournalError: the journal cannot be used.
        """
        with log_context(node=self.node_id):
            self._serve_until_stopped()

    def _serve_until_stopped(self) -> None:
        self._arrive()
        name, interval = f"heartbeat of node {self.node_id}", self._registration.lease / 3
        heartbeat = Heartbeat(name, interval, self._beat, self._stop.fail)
        waker = threading.Thread(target=self._wake_when_stopping, name="waker", daemon=True)
        watcher = Heartbeat(f"gate of node {self.node_id}", _WATCH, self._site.watch, self._stop.fail)
        heartbeat.start()
        waker.start()
        if self._site.has_gate:
            watcher.start()
        try:
            if not self.is_stopping():
                self._on_ready()
                if self._workers is not None:
                    self._workers.start()
            while not self.is_stopping():
                self.turn(min(BLOCK, self._registration.lease / 2))
        finally:
            self.stop()
            heartbeat.stop()
            watcher.stop()
            waker.join()
            self.leave()
        if self._stop.failure is not None:
            raise self._stop.failure

    def _arrive(self) -> None:
        while True:
            try:
                return self.register()
            except RedisUnreachable as error:
                if not self._options.wait_for_redis or self.is_stopping():
                    raise
                self._connection.wait_until_up(float("inf"), self.is_stopping, error)

    def register(self) -> None:
        """Take the node's id, and open the journal that belongs to this Redis.

        Raises:
            NodeNameTaken, JournalError: as for `serve`.
        """
        try:
            self._registration.register(self.is_stopping)
            if not self.is_stopping():
                self._choose_journal()
        except BaseException:  # else it seems to be online for a lease time
            with suppress(BrokerflError):
                self._registration.leave()
            raise

    def _wake_when_stopping(self) -> None:
        """Ring the node's own doorbell to end a blocking read, so that no signal has to interrupt it."""
        self._stop.wait()
        self._worklist.close()
        self._ring()

    def _ring(self, word: str = READ_ON) -> None:
        try:
            ring_doorbell(self._connection, self.node_id, word)
        except BrokerflError:
            return  # then nothing is being read, either

    def leave(self) -> None:
        """Let the workers finish, publish what was executed, give up the id, and close the journal."""
        if self._workers is not None:
            self._workers.join()
        try:
            self._close_publisher()
            within(time.monotonic() + STEP, self._registration.leave)
        except BrokerflError as error:
            log(WARNING, "The node left, but could not tell Redis: %s", error)
        if isinstance(self._stop.failure, NodeNameTaken):
            self._ring("")  # the process that has the name now executes what this one read but did not execute
        self._site.close()
        self._journal.close()

    def _close_publisher(self) -> None:
        try:
            self._service.publisher.close()
        except JournalError as error:
            self._stop.failure = self._stop.failure or error

    def _beat(self) -> None:
        self._activity.beat()
        self._renew()
        self._activity.learn()
        self._stuck.look()
        self._service.executor.tidy()

    def _renew(self) -> None:
        if not self._registration.renew(self._service.status(self._connection.clock)):
            raise NodeNameTaken(f"another process took over node {self.node_id} while this one did not respond")
        if self._connection.losses == self._losses:  # else the loop has to call `hold_on` first
            self._payloads.release()  # the loop does not while it executes

    # The loop.

    def turn(self, block: float) -> None:
        """Read, waiting ``block`` seconds for a message; without workers, execute one. Wait out an outage."""
        self._activity.turn()
        try:
            self._turn(block)
        except (RedisUnreachable, RedisOutOfMemory) as error:
            self._hold()
            self._connection.wait_until_up(float("inf"), self._waits_no_more, error)
        except NodeNameTaken as error:
            self._stop.fail(error)

    def _waits_no_more(self) -> bool:
        self._activity.turn()  # it stands for one: nothing else is to be done in an outage
        return self.is_stopping()

    def _turn(self, block: float) -> None:
        self._heed_operators()
        losses = self._connection.losses
        if losses != self._losses:
            self._payloads.hold_on()  # before the heartbeat may release anything
            self._losses = losses  # a worker may lose Redis in the meantime; then all this is repeated
            self._renew()
            self._choose_journal()
            self._service.publisher.flush()
            self._queue(self._inboxes.drain())
            self._worklist.resume()
        self._queue(self._intake.let_in())
        if self._workers is not None:
            self._queue(self._intake.read_for_workers(block))
        elif self._worklist.is_paused or not self._worklist:
            self._queue(self._intake.read(block))
        executes = self._workers is None and not self._worklist.is_paused
        if self._is_current() and executes and self._worklist and not self.is_stopping():
            self._service.work(self._worklist.next())
        self._payloads.release()

    def _heed_operators(self) -> None:
        """A paused node finishes what is being executed, and begins nothing: what it has read waits, as all else."""
        if self._inboxes.is_steered:
            self._inboxes.is_steered = False
            self._renew()
        if (is_paused := self._registration.is_paused) != self._worklist.is_paused:
            self._worklist.pause(is_paused)
            log(INFO, "Paused: no message is begun until this node is resumed" if is_paused else "Resumed")
            self._renew()  # says so

    def _hold(self) -> None:
        """Redis is unreachable or lost its data: start nothing new until the loop has recovered."""
        self._worklist.hold()
        self._losses = -1

    def _is_current(self) -> bool:
        """Whether this process holds the lease, and the journal belongs to this Redis.

        Raises:
            NodeNameTaken: another process holds the lease.
        """
        if self._registration.is_due():  # this process was frozen, or Redis unreachable
            self._renew()
        if self._registration.identity == self._identity:
            return True
        self._hold()  # the data are gone, although no connection broke
        return False

    def _choose_journal(self) -> None:
        """The local state belongs to one Redis data set."""
        identity = self._registration.identity
        if identity == self._identity:
            return
        if self._identity:
            log(
                WARNING,
                "Redis at %s lost its data or was replaced; the node starts with a new state",
                self._connection.url,
            )
        strange = self._service.start_afresh(identity)
        if strange and not self._identity:
            log(
                WARNING,
                "The state directory belongs to another Redis, or to one that lost its data; starting with a new state",
            )
        self._identity = identity

    def _queue(self, deliveries: list[Delivery]) -> None:
        self._heed_operators()  # before a worker begins one of them
        for delivery in deliveries:
            message_id = received_id_of(delivery.fields)
            if message_id:
                ahead = self._worklist.add(delivery, message_id)
                event, text = ("waiting", "Received; %s of its run come first") if ahead else ("received", "Received")
                trace(event, text, *([ahead] if ahead else []), run=delivery.run_id, message_id=message_id)
                continue
            if delivery.fields:  # without fields, the ServerApp took it back after its delivery
                log(WARNING, "Removed an entry of run %s that names no message", delivery.run_id)
            discard_message(self._connection, self.node_id, delivery.run_id, delivery.entry_id)

    def _serve(self, work: Work, worker: int) -> None:
        """Serve one message in a worker, like the loop in `turn`."""
        begun = False
        try:
            if self._worklist.has_room(work):
                self._ring()
            if self._is_current() and not self.is_stopping():
                begun = True
                self._service.work(work, worker)
        except (RedisUnreachable, RedisOutOfMemory):
            self._hold()
            self._ring()  # the loop may be reading through another socket, and not have noticed
        finally:
            if not begun:
                self._worklist.release(work, put_back=True)
