"""The node: reads its inboxes, runs the ClientApp, publishes the replies.

Owns the loop and the Context of each run. It must not know the commands that Redis is sent.
"""

import threading
import time
import traceback
from collections.abc import Callable
from logging import ERROR, INFO, WARNING

from brokerfl.broker.connection import Connection
from brokerfl.broker.heartbeat import Heartbeat
from brokerfl.broker.inbox import Delivery, Inboxes, discard_message, ring_doorbell
from brokerfl.broker.nodes import Registration
from brokerfl.broker.stream import milliseconds_of
from brokerfl.client.app import ClientApp
from brokerfl.client.publisher import Publisher
from brokerfl.client.worklist import Work, Worklist
from brokerfl.common import (
    SUPERLINK_NODE_ID,
    BrokerflError,
    Context,
    Error,
    ErrorCode,
    FrameError,
    Message,
    Metadata,
    NodeNameTaken,
    RecordSet,
    RedisOutOfMemory,
    RedisUnreachable,
    UserConfig,
    log,
)
from brokerfl.wire.frame import Fields
from brokerfl.wire.message import decode_message, encode_message, message_id_of
from brokerfl.wire.record import encode_content
from brokerfl.wire.run import Run, decode_run

#: Seconds of work to read ahead. A node whose messages take longer than this reads one of each run at a time, so that
#: runs take turns fairly; one whose messages are tiny reads many in one round trip.
READ_AHEAD = 0.05
_MOST_READ = 64

#: Characters of an Error reply's reason; the whole of it is in the node's log.
_LONGEST_REASON = 2000


class Node:
    """Serves every run with one ClientApp, until `stop`.

    Args:
        app: the ClientApp.
        connection: the Redis in the middle.
        registration: the node's claim to its id.
        node_config: given to every Context.
        on_ready: called once the node is registered and about to read.
    """

    def __init__(
        self,
        app: ClientApp,
        connection: Connection,
        registration: Registration,
        node_config: UserConfig | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.node_id = registration.node_id
        self._app = app
        self._connection = connection
        self._registration = registration
        self._node_config = dict(node_config or {})
        self._on_ready = on_ready
        self._contexts: dict[int, Context] = {}
        self._runs: dict[int, Run] = {}
        self._worklist = Worklist()
        self._inboxes = Inboxes(connection, self.node_id, self._take_runs)
        self._publisher = Publisher(connection, self.node_id, self._settled, self._fail, self.is_stopping)
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._pace = READ_AHEAD
        self._settling = threading.Lock()

    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Finish the message in hand, publish it, leave. May be called from a signal handler or any thread."""
        self._stopping.set()

    def serve(self) -> None:
        """Register and serve until `stop`.

        Raises:
            NodeNameTaken: another process holds the name, now or since this one was frozen.
            RedisAuthError, RedisTLSError: Redis does not let us in.
        """
        self._registration.register(self.is_stopping)
        heartbeat = Heartbeat(
            f"heartbeat of node {self.node_id}", self._registration.lease / 3, self._renew, self._fail
        )
        waker = threading.Thread(target=self._wake_when_stopping, name="waker", daemon=True)
        heartbeat.start()
        waker.start()
        try:
            if not self.is_stopping():
                self._on_ready()
            self._loop()
        finally:
            self.stop()
            heartbeat.stop()
            waker.join()
            self._leave()
        if self._failure is not None:
            raise self._failure

    def _wake_when_stopping(self) -> None:
        """A blocking read ends when the node rings its own doorbell: no signal has to tear it apart."""
        self._stopping.wait()
        try:
            ring_doorbell(self._connection, self.node_id)
        except BrokerflError:
            return  # then nothing is being read either

    def _leave(self) -> None:
        try:
            self._publisher.close()
            self._registration.leave()
        except BrokerflError as error:
            log(WARNING, "The node left without telling Redis: %s", error)

    def _renew(self) -> None:
        if not self._registration.renew():
            raise NodeNameTaken(f"another process took over node {self.node_id} while this one did not answer")

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self.stop()

    # The loop.

    def _loop(self) -> None:
        connected = False
        while not self.is_stopping():
            try:
                if not connected:
                    self._renew()
                    self._publisher.flush()
                    self._take(self._inboxes.drain())
                    connected = True
                if not self._worklist:
                    self._take(self._inboxes.read(self._read_ahead()))
                if self._worklist and not self.is_stopping():
                    self._work()
            except (RedisUnreachable, RedisOutOfMemory):
                connected = False
                self._connection.wait_until_up(float("inf"), self.is_stopping)

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
            discard_message(self._connection, self.node_id, work.run_id, entry)

    def _take_runs(self, frames: dict[int, bytes]) -> None:
        """Learn of new runs; forget those that are over, with their state and their queued messages."""
        for run_id, frame in frames.items():
            if run_id not in self._runs:
                try:
                    self._runs[run_id] = decode_run(run_id, frame)
                except FrameError as error:
                    log(WARNING, "Run %s cannot be served: %s", run_id, error)
        for run_id in set(self._runs).difference(frames):
            del self._runs[run_id]
            self._contexts.pop(run_id, None)
        with self._settling:
            self._worklist.keep_only(frames)

    def _work(self) -> None:
        with self._settling:
            work = self._worklist.next()
        started = time.monotonic()
        reply = self._answer(work)
        self._pace = max(1e-6, time.monotonic() - started)
        if reply is None:
            self._settled(work, ())
        else:
            self._publisher.put(work, reply, more=bool(self._worklist))

    # One message.

    def _answer(self, work: Work) -> Fields | None:
        """Return the reply to one message, whatever happens; None when it expired unseen."""
        try:
            message = decode_message(work.fields)
        except FrameError as error:
            log(WARNING, "A message of run %s cannot be read: %s", work.run_id, error)
            return self._refuse(
                work, ErrorCode.MESSAGE_UNAVAILABLE, f"node {self.node_id} cannot read the message: {error}"
            )
        deadline = milliseconds_of(work.entries[0]) + message.metadata.ttl * 1000
        if deadline <= self._connection.time() * 1000:
            log(INFO, "A message of run %s expired before it was executed", work.run_id)
            return None
        if work.run_id not in self._runs:
            return self._refuse(work, ErrorCode.MESSAGE_UNAVAILABLE, "the run's frame cannot be read by this node")
        try:
            reply = self._app(message, self._context(work.run_id))
            return self._encode(work, message, reply)
        except (Exception, SystemExit) as error:
            log(
                ERROR,
                "The ClientApp raised an exception on a message of type %s\n%s",
                message.metadata.message_type,
                _printable(traceback.format_exc().rstrip()),
            )
            return self._refuse(work, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {_text(error)}")

    def _context(self, run_id: int) -> Context:
        context = self._contexts.get(run_id)
        if context is None:
            config = dict(self._runs[run_id].run_config)
            context = Context(run_id, self.node_id, dict(self._node_config), RecordSet(), config)
            self._contexts[run_id] = context
        return context

    def _encode(self, work: Work, message: Message, reply: Message) -> Fields:
        if not isinstance(reply, Message):
            raise TypeError(
                f"the function for {message.metadata.message_type} messages returned {type(reply).__name__}, not a "
                "Message: return message.create_reply(…)"
            )
        header = self._header(work, message.metadata.group_id, message.metadata.message_type, reply.metadata.ttl)
        if reply.has_error():
            return encode_message(work.message_id, header, error=reply.error)
        return encode_message(work.message_id, header, encode_content(reply.content))

    def _refuse(self, work: Work, code: int, reason: str) -> Fields:
        error = Error(code, _printable(reason[:_LONGEST_REASON]))
        return encode_message(work.message_id, self._header(work, "", "", 0.0), error=error)

    def _header(self, work: Work, group_id: str, message_type: str, ttl: float) -> Metadata:
        return Metadata(
            run_id=work.run_id,
            message_id="",
            src_node_id=self.node_id,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message=work.message_id,
            group_id=group_id,
            ttl=ttl,
            message_type=message_type,
        )


def _text(error: BaseException) -> str:
    """Return what an exception says; user code may have broken even that."""
    try:
        return str(error)
    except Exception:
        return "(its text cannot be had)"


def _printable(text: str) -> str:
    """Return text that can be sent and logged: Python keeps odd bytes of file names as characters that cannot."""
    return text.encode(errors="replace").decode()
