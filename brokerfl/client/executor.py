"""The executor: what a node does with one message, and the Context of each run.

Owns that a message is executed once as far as the journal knows, and that `context.state` is what the last committed
message left. It must not know inboxes' cursors, leases or how replies are published.
"""

import time
import traceback
from collections.abc import Callable
from logging import DEBUG, ERROR, INFO, WARNING

from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import is_wanted
from brokerfl.broker.outbox import download
from brokerfl.broker.stream import milliseconds_of
from brokerfl.client.app import ClientApp
from brokerfl.client.journal import Journal
from brokerfl.client.worklist import Work
from brokerfl.common import (
    SUPERLINK_NODE_ID,
    BrokerflError,
    Context,
    Error,
    ErrorCode,
    FrameError,
    Message,
    Metadata,
    RecordSet,
    UserConfig,
    log,
)
from brokerfl.wire.frame import DATA, Fields, check_size, data_entry_of
from brokerfl.wire.message import decode_message, encode_message
from brokerfl.wire.record import decode_content, digest_of, encode_content, frozen
from brokerfl.wire.run import Run, decode_run

#: Bytes of a reply's content that travel in the reply itself and are kept in the journal. What is larger goes to the
#: data stream before the reply names it, and never to disk.
INLINE = 64 * 1024

#: Seconds that the payload of a run's last large reply stays in memory, for a Redis that forgot it.
HOLD = 60.0

#: Characters of an Error reply's reason; the whole of it is in the node's log.
_LONGEST_REASON = 2000

#: Seconds between two questions whether a running message is still wanted.
_ASK = 1.0


class Executor:
    """Executes messages with one ClientApp.

    Args:
        app: the ClientApp.
        connection: where messages come from.
        node_id: whose messages.
        node_config: given to every Context.
        journal: what was executed, and the states.
        max_crashes: how often a message may kill the node before it is answered with Error 8.
        upload: puts the content of a large reply into the data stream and returns its entry, None when the run is over.
    """

    def __init__(
        self,
        app: ClientApp,
        connection: Connection,
        node_id: int,
        node_config: UserConfig,
        journal: Journal,
        max_crashes: int,
        upload: Callable[[int, Fields], str | None],
    ) -> None:
        self._app = app
        self._connection = connection
        self._node_id = node_id
        self._node_config = dict(node_config)
        self._journal = journal
        self._max_crashes = max_crashes
        self._upload = upload
        self._runs: dict[int, Run] = {}
        self._contexts: dict[int, Context] = {}
        self._digests: dict[int, bytes] = {}
        self._no_state = digest_of(encode_content(RecordSet()))
        self._held: dict[int, tuple[str, Fields, float]] = {}
        self._running: Work | None = None
        self._asked = 0.0
        self._losses = 0
        self._unwanted = False

    def take_runs(self, frames: dict[int, bytes]) -> None:
        """Learn of new runs; those that are over are forgotten, their states later."""
        for run_id, frame in frames.items():
            if run_id not in self._runs:
                try:
                    self._runs[run_id] = decode_run(run_id, frame)
                except FrameError as error:
                    log(WARNING, "Run %s cannot be served: %s", run_id, error)
        for run_id in set(self._runs).difference(frames):
            del self._runs[run_id]
            self._drop_context(run_id)
        self._journal.keep_only(frames)

    def start_afresh(self) -> None:
        """The journal is another one now."""
        self._runs.clear()
        self._contexts.clear()
        self._digests.clear()
        self._held.clear()

    def release(self) -> None:
        """Let go of large replies that were held long enough."""
        for run_id, (_, _, since) in list(self._held.items()):
            if time.monotonic() - since > HOLD:
                del self._held[run_id]

    # One message.

    def execute(self, work: Work) -> Fields | None:
        """Return the reply to one message, whatever happens; None when it expired unseen or its run is over.

        Raises:
            RedisUnreachable: the node is stopping and a large reply could not be uploaded: the message stays open.
        """
        answered = self._journal.reply_to(work.run_id, work.message_id)
        if answered is not None:
            log(DEBUG, "Message %s was executed before; its reply is published again", work.message_id)
            return self._again(work, dict(answered))
        try:
            message = decode_message(work.fields)
        except FrameError as error:
            log(WARNING, "A message of run %s cannot be read: %s", work.run_id, error)
            return self._refuse(
                work, ErrorCode.MESSAGE_UNAVAILABLE, f"node {self._node_id} cannot read the message: {error}"
            )
        deadline = milliseconds_of(work.entries[0]) + message.metadata.ttl * 1000
        if deadline <= self._connection.time() * 1000:
            log(INFO, "A message of run %s expired before it was executed", work.run_id)
            return None
        if work.run_id not in self._runs:
            return self._refuse(work, ErrorCode.MESSAGE_UNAVAILABLE, "the run's frame cannot be read by this node")
        crashes = self._journal.begin(work.run_id, work.message_id)
        if crashes >= self._max_crashes:
            return self._set_aside(work, crashes)
        return self._run(work, message)

    def _set_aside(self, work: Work, crashes: int) -> Fields:
        log(ERROR, "Message %s killed this node %s times; it is set aside (brokerfl dead)", work.message_id, crashes)
        reason = f"the message killed node {self._node_id} {crashes} times; the node has set it aside"
        reply = self._refuse(work, ErrorCode.CLIENT_APP_CRASHED, reason)
        self._journal.set_aside(work.run_id, work.message_id, dict(work.fields), crashes)
        self._journal.commit(work.run_id, work.message_id, reply)
        return reply

    def _run(self, work: Work, message: Message) -> Fields | None:
        self._running, self._asked, self._unwanted = work, 0.0, False
        self._losses = self._connection.losses
        state: Fields | None = None
        content: Fields = {}
        context = self._context(work.run_id)
        try:
            reply = self._app(message, context)
            head, content = self._encode(work, message, reply)
            state, digest = self._changed_state(work.run_id, context)
        except (Exception, SystemExit) as error:
            self._drop_context(work.run_id)  # what it did to the state is undone
            log(
                ERROR,
                "The ClientApp raised an exception on a message of type %s\n%s",
                message.metadata.message_type,
                _printable(traceback.format_exc().rstrip()),
            )
            reason = f"{type(error).__name__}: {_text(error)}"
            head = self._refuse(work, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            content, state = {}, None
        finally:
            self._running = None
            self._journal.forgive()  # from here on nothing that kills the node is the app's doing
        if sum(map(len, content.values())) > INLINE:
            entry = self._upload_large(work, content)
            if entry is None:
                return None
            content = {DATA: entry.encode()}
        fields = {**head, **content}
        self._journal.commit(work.run_id, work.message_id, fields, state)
        if state is not None:
            self._digests[work.run_id] = digest
        return fields

    def _upload_large(self, work: Work, content: Fields) -> str | None:
        try:
            entry = self._upload(work.run_id, content)
        except BaseException:
            self._drop_context(work.run_id)
            raise
        if entry is None:
            self._drop_context(work.run_id)
            log(INFO, "Run %s is over; a late reply to it was dropped", work.run_id)
        else:
            self._held[work.run_id] = work.message_id, frozen(content), time.monotonic()
        return entry

    def _again(self, work: Work, reply: Fields) -> Fields | None:
        """A reply whose payload is gone is uploaded again while it is at hand; else it is Error 4."""
        data_entry = data_entry_of(reply)
        if not data_entry or download(self._connection, self._node_id, work.run_id, data_entry) is not None:
            return reply
        held_id, content, _ = self._held.get(work.run_id, ("", {}, 0.0))
        if held_id != work.message_id:
            reason = f"node {self._node_id} had answered, and the payload of its reply is gone from Redis"
            return self._refuse(work, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)
        entry = self._upload(work.run_id, content)
        if entry is None:
            return None
        again = {**reply, DATA: entry.encode()}
        self._journal.commit(work.run_id, work.message_id, again)
        return again

    # Contexts.

    def _context(self, run_id: int) -> Context:
        context = self._contexts.get(run_id)
        if context is None:
            fields = self._journal.state_of(run_id)
            state = RecordSet() if fields is None else decode_content(fields)
            config = dict(self._runs[run_id].run_config)
            context = Context(run_id, self._node_id, dict(self._node_config), state, config, self._is_cancelled)
            self._contexts[run_id] = context
            self._digests[run_id] = self._no_state if fields is None else digest_of(encode_content(state))
        return context

    def _drop_context(self, run_id: int) -> None:
        self._contexts.pop(run_id, None)
        self._digests.pop(run_id, None)

    def _changed_state(self, run_id: int, context: Context) -> tuple[Fields | None, bytes]:
        """Return the state's fields if it is not what the journal has, and its digest."""
        known = self._digests[run_id]
        state = context.state
        if known == self._no_state and not (state.parameters_records or state.metrics_records or state.configs_records):
            return None, known
        fields = encode_content(state)
        digest = digest_of(fields)
        return (None if digest == known else fields), digest

    def _is_cancelled(self) -> bool:
        """Ask Redis about the message that is running, at most once a second.

        After a lost connection Redis may have forgotten it, which is no cancellation: its ServerApp pushes it again.
        """
        work, now = self._running, time.monotonic()
        if work is None or self._unwanted or now - self._asked < _ASK:
            return self._unwanted
        self._asked = now
        try:
            wanted = is_wanted(self._connection, self._node_id, work.run_id, work.entries)
        except BrokerflError:
            return False
        self._unwanted = not wanted and self._connection.losses == self._losses
        return self._unwanted

    # Replies.

    def _encode(self, work: Work, message: Message, reply: Message) -> tuple[Fields, Fields]:
        """Return the fields of a reply: its head, and its content."""
        if not isinstance(reply, Message):
            raise TypeError(
                f"the function for {message.metadata.message_type} messages returned {type(reply).__name__}, not a "
                "Message: return message.create_reply(…)"
            )
        header = self._header(work, message.metadata.group_id, message.metadata.message_type, reply.metadata.ttl)
        if reply.has_error():
            return encode_message(work.message_id, header, error=reply.error), {}
        head, content = encode_message(work.message_id, header), encode_content(reply.content)
        check_size({**head, **content})
        return head, content

    def _refuse(self, work: Work, code: int, reason: str) -> Fields:
        error = Error(code, _printable(reason[:_LONGEST_REASON]))
        return encode_message(work.message_id, self._header(work, "", "", 0.0), error=error)

    def _header(self, work: Work, group_id: str, message_type: str, ttl: float) -> Metadata:
        return Metadata(
            run_id=work.run_id,
            message_id="",
            src_node_id=self._node_id,
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
