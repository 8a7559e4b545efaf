"""The executor: what a node does with one message.

Owns that a message is executed once as far as the journal knows, and that its reply and what it did to `context.state`
stand or fall together. It must not know inboxes' cursors, leases or how replies are committed and published.
"""

import traceback
from collections.abc import Callable
from contextlib import suppress
from logging import DEBUG, ERROR, INFO, WARNING

from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import discard_message, is_wanted
from brokerfl.broker.stream import milliseconds_of
from brokerfl.client.app import ClientAppCallable
from brokerfl.client.contexts import Contexts, Execution, RunContext
from brokerfl.client.journal import Answer, Journal
from brokerfl.client.payloads import Payloads
from brokerfl.client.worklist import Work
from brokerfl.common import (
    SUPERLINK_NODE_ID,
    Error,
    ErrorCode,
    FrameError,
    Message,
    Metadata,
    UserConfig,
    log,
)
from brokerfl.wire.frame import MANIFEST, Fields, size_of
from brokerfl.wire.message import decode_header, encode_message
from brokerfl.wire.payload import INLINE, EncodedContent, Manifest, MissingChunkError, Payload, manifest_of
from brokerfl.wire.record import decode_content, encode_content, frozen
from brokerfl.wire.run import Run, decode_run

#: Bytes of a content that are kept of a message that killed the node too often, for whoever looks for the reason.
MOST_KEPT = 256 * 1024**2

#: Characters of an Error reply's reason; the whole of it is in the node's log.
_LONGEST_REASON = 2000


class Executor:
    """Executes messages with one ClientApp. Safe to share between workers that each have a run of their own.

    Args:
        app: the ClientApp, or a function that takes its place.
        connection: where messages come from.
        node_id: whose messages.
        node_config: given to every Context.
        journal: what was executed, and the states.
        max_crashes: how often a message may kill the node before it is answered with Error 8.
        payloads: fetches and uploads what is large.
        commit: has what is finished noted in the journal, so that a state that is loaded has it.
    """

    def __init__(
        self,
        app: ClientAppCallable,
        connection: Connection,
        node_id: int,
        node_config: UserConfig,
        journal: Journal,
        max_crashes: int,
        payloads: Payloads,
        commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = app
        self._connection = connection
        self._node_id = node_id
        self._journal = journal
        self._max_crashes = max_crashes
        self._payloads = payloads
        self._commit = commit
        self._runs: dict[int, Run] = {}
        self._contexts = Contexts(node_id, node_config, self._load_state)

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
            self._payloads.forget(run_id)
        self._contexts.keep_only(frames)
        self._journal.keep_only(frames)

    def start_afresh(self) -> None:
        """The journal is another one now."""
        self._runs.clear()
        self._contexts.clear()
        self._payloads.clear()

    # One message.

    def execute(self, work: Work, worker: int = 0) -> Fields | None:
        """Return the reply to one message, whatever happens; None when it expired, or nobody wants it any more.

        ``work.answer`` is then what the journal has to note before the reply is published.

        Args:
            work: the message. No other worker executes one of its run.
            worker: whose record of what is being executed is used.

        Raises:
            RedisUnreachable: the node is stopping and a large reply could not be uploaded: the message stays open.
            JournalError: the state cannot be loaded.
        """
        answered = self._journal.reply_to(work.run_id, work.message_id)
        if answered is not None:
            log(DEBUG, "Message %s was executed before; its reply is published again", work.message_id)
            try:
                return self._again(work, dict(answered))
            except FrameError as error:  # another version made it
                reason = f"node {self._node_id} cannot read the reply that it keeps: {error}"
                return self._refuse(work, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)
        try:
            metadata, _ = decode_header(work.fields)
            deadline = milliseconds_of(work.entries[0]) + metadata.ttl * 1000
            if deadline <= self._connection.time() * 1000:
                self._expire(work)
                return None
            run = self._runs.get(work.run_id)
            if run is None:
                return self._refuse(work, ErrorCode.MESSAGE_UNAVAILABLE, "the run's frame cannot be read by this node")
            kept = self._contexts.of(run)
            crashes = self._journal.begin(work.run_id, work.message_id, worker)
            try:  # a payload that is too large for this machine kills the node too
                if crashes >= self._max_crashes:
                    return self._set_aside(work, metadata, crashes)
                content = self._fetch(work, metadata)
                if content is None:
                    return None
                head, content, state = self._run(work, Message(metadata, content=decode_content(content)), kept)
            finally:
                self._journal.forgive(worker)  # from here on nothing that kills the node is the app's doing
        except FrameError as error:
            log(WARNING, "A message of run %s cannot be read: %s", work.run_id, error)
            return self._refuse(
                work, ErrorCode.MESSAGE_UNAVAILABLE, f"node {self._node_id} cannot read the message: {error}"
            )
        return self._finish(work, metadata.group_id, head, content, state)

    def _expire(self, work: Work) -> None:
        log(INFO, "A message of run %s expired before it was executed", work.run_id)
        for entry in work.entries:
            discard_message(self._connection, self._node_id, work.run_id, entry)

    def _fetch(self, work: Work, metadata: Metadata) -> Fields | None:
        """Return the content of a message; None when nobody wants it any more.

        Raises:
            FrameError: it cannot be read, or a part of it is gone.
            RedisUnreachable: Redis is away.
        """
        manifest = manifest_of(work.fields, self._payloads.limit)
        self._payloads.moves_on(work.run_id, metadata.group_id)
        if manifest is None:
            return dict(work.fields)
        try:
            return self._payloads.fetch(work.run_id, manifest)
        except MissingChunkError:
            if not is_wanted(self._connection, self._node_id, work.run_id, work.entries):
                return None  # it was settled or taken back meanwhile, or Redis forgot it, and it will come again
        try:
            return self._payloads.fetch(work.run_id, manifest)
        except MissingChunkError as error:
            raise FrameError(str(error)) from None

    def _set_aside(self, work: Work, metadata: Metadata, crashes: int) -> Fields:
        log(ERROR, "Message %s killed this node %s times; it is set aside (brokerfl dead)", work.message_id, crashes)
        reason = f"the message killed node {self._node_id} {crashes} times; the node has set it aside"
        reply = self._refuse(work, ErrorCode.CLIENT_APP_CRASHED, reason)
        manifest, content = manifest_of(work.fields, self._payloads.limit), None
        if manifest is not None and manifest.size <= MOST_KEPT:
            with suppress(FrameError):
                content = self._fetch(work, metadata)
        self._journal.set_aside(work.run_id, work.message_id, {**work.fields, **(content or {})}, crashes)
        work.answer = Answer(work.run_id, work.message_id, reply)
        return reply

    def _run(self, work: Work, message: Message, kept: RunContext) -> tuple[Fields, Fields, Fields | None]:
        """Return head and content of the reply, and the state if it changed."""
        execution = kept.execution = Execution(self._connection, self._node_id, work)
        try:
            reply = self._app(message, kept.context)
            head, content = self._encode(work, message, reply)
            return head, content, kept.changed_state()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, or what asyncio cancels with: it is the app's all the same
            self._contexts.drop(work.run_id)  # what it did to the state is undone
            log(
                ERROR,
                "The ClientApp raised an exception on a message of type %s\n%s",
                message.metadata.message_type,
                _printable(traceback.format_exc().rstrip()),
            )
            reason = f"{type(error).__name__}: {_text(error)}"
            return self._refuse(work, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), {}, None
        finally:
            execution.end()

    def _finish(self, work: Work, group_id: str, head: Fields, content: Fields, state: Fields | None) -> Fields | None:
        """Return the reply as it is published. The app may go on with the memory that it shares with it.

        None when nobody wants it any more; then nothing of it remains.
        """
        uploaded = self._upload(work, group_id, EncodedContent(content))
        if uploaded is None:
            return None
        reply = {**head, **uploaded}
        is_shared = state is not None and size_of(state) > INLINE  # too much to copy
        if state is not None and not is_shared:
            state = frozen(state)
        work.answer = Answer(work.run_id, work.message_id, reply, state, is_shared)
        return reply

    def _upload(self, work: Work, group_id: str, content: EncodedContent) -> Fields | None:
        """Return what the reply carries of its content; None when nobody wants it any more."""
        if content.payload is None:
            return content.fields
        manifest = None
        try:
            manifest = self._bring(work, group_id, content.payload)
        finally:
            if manifest is None:
                self._contexts.drop(work.run_id)
        return None if manifest is None else {MANIFEST: manifest.encoded}

    def _bring(self, work: Work, group_id: str, payload: Payload) -> Manifest | None:
        def wanted() -> bool:
            return is_wanted(self._connection, self._node_id, work.run_id, work.entries)

        return self._payloads.upload(work.run_id, work.message_id, group_id, payload, wanted)

    def _again(self, work: Work, reply: Fields) -> Fields | None:
        """A reply whose payload is gone is uploaded again while it is at hand; else it is Error 4."""
        manifest = manifest_of(reply)
        if manifest is None or self._payloads.has_uploaded(work.run_id, manifest):
            return reply
        payload = self._payloads.held(work.run_id, work.message_id)
        if payload is None:
            reason = f"node {self._node_id} had answered, and the payload of its reply is gone from Redis"
            return self._refuse(work, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)
        group_id = decode_header(reply)[0].group_id
        manifest = self._bring(work, group_id, payload)
        if manifest is None:
            return None
        again = {**reply, MANIFEST: manifest.encoded}
        work.answer = Answer(work.run_id, work.message_id, again)
        return again

    def _load_state(self, run_id: int) -> Fields | None:
        self._commit()
        state = self._journal.state_of(run_id)
        return None if state is None else dict(state)

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
            code, reason = reply.error.code, reply.error.reason
            if not isinstance(code, int) or not isinstance(reason, str | None):
                raise TypeError(f"an Error is made of an int and a str, not of {code!r} and {reason!r}")
            reason = None if reason is None else _printable(reason[:_LONGEST_REASON])
            return encode_message(work.message_id, header, error=Error(int(code), reason)), {}
        return encode_message(work.message_id, header), encode_content(reply.content)

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
