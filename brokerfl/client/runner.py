"""The runner: has the ClientApp execute one message after another.

Owns the Context of each run, and undoes the changes of an app that raised. It takes fields and a state, and returns
fields and a state. It must not know Redis, the journal, or where contents and states are kept.
"""

import traceback
from collections.abc import Callable, Iterable
from logging import ERROR, WARNING
from typing import NamedTuple

from brokerfl.client.app import ClientAppCallable
from brokerfl.client.reply import encode_refusal, encode_reply
from brokerfl.client.site import ReplyRefused, Site
from brokerfl.common import (
    Context,
    ErrorCode,
    FrameError,
    Message,
    MessageTooLarge,
    Metadata,
    RecordSet,
    UserConfig,
    log,
)
from brokerfl.common.text import shown, shown_node
from brokerfl.wire.frame import Fields
from brokerfl.wire.origin import Origin
from brokerfl.wire.record import decode_content, digest_of, encode_content
from brokerfl.wire.run import Run
from brokerfl.wire.told import sendable

#: Most bytes of one array of a state. SQLite takes rows of 1,000,000,000 bytes (SQLITE_MAX_LENGTH,
#: https://www.sqlite.org/limits.html): this leaves room for the row's header, and for the run and the array's name.
MOST_BYTES = 1_000_000_000 - 1024


#: What an Error reply has instead of a text that stays where the node is.
NOT_SHARED = "its text is only in the node's log"


class NoStateError(Exception):
    """The runner neither has nor was given the state of the run."""


class InterruptedExecution(Exception):  # noqa: N818
    """The app raised after the node was told to stop, perhaps because the signal reached its children, too."""


class Task(NamedTuple):
    """One message to execute.

    Attributes:
        run: the run.
        message_id: the message's id.
        metadata: its metadata.
        content: its fields, with those of a large content.
        state: the state's fields, empty if the run never had any; None if the runner has the current state.
        is_cancelled: tells the app whether the reply is no longer wanted.
    """

    run: Run
    message_id: str
    metadata: Metadata
    content: Fields
    state: Fields | None
    is_cancelled: Callable[[], bool]


class Result(NamedTuple):
    """The result of one execution.

    Attributes:
        head: the reply's fields without its content.
        content: its content, empty for an error. It may share memory with the app.
        state: the state's fields if it changed, else None. They may share memory with the app.
        error: the class of what the app raised; "" for nothing.
    """

    head: Fields
    content: Fields
    state: Fields | None
    error: str = ""


class Runner:
    """Executes messages with one ClientApp. Safe to share between threads that serve different runs.

    Args:
        app: the ClientApp, or a function with the same arguments.
        node_id: the node.
        node_config: for every Context.
        is_stopping: whether the node was told to stop.
        origin: where the app comes from; None if it runs the messages of every run.

    Attributes:
        node_id, origin: as given.
        shares_text: an Error reply has the text of what the app raised; else only its class.
        called: the node in words.
        site: looks at each reply before it is encoded.
    """

    def __init__(
        self,
        app: ClientAppCallable,
        node_id: int,
        node_config: UserConfig,
        is_stopping: Callable[[], bool] = lambda: False,
        origin: Origin | None = None,
    ) -> None:
        self.node_id = node_id
        self.called = shown_node(node_id)
        self.origin = origin
        self.shares_text = True
        self.site = Site()
        self._app = app
        self._node_config = dict(node_config)
        self._is_stopping = is_stopping
        self._contexts: dict[int, _RunContext] = {}

    def run(self, task: Task) -> Result:
        """Execute one message.

        If the app raises, or the site keeps its reply, the result is an Error reply, and its change of the state is
        undone.

        Raises:
            NoStateError: the state is missing.
            InterruptedExecution: the app raised, and the node is stopping: there is no result.
            FrameError: the message or the state cannot be read.
        """
        kept = self._context_of(task)
        message = Message(task.metadata, content=decode_content(task.content))
        kept.is_cancelled = task.is_cancelled
        try:
            reply = self._app(message, kept.context)
            self.site.look_over(message, reply)
            head, content = encode_reply(self.node_id, task.run.run_id, task.message_id, task.metadata, reply)
            return Result(head, content, kept.changed_state())
        except KeyboardInterrupt:
            raise
        except ReplyRefused as refusal:
            self.drop(task.run.run_id)
            code = ErrorCode.MOD_FAILED_PRECONDITION
            return Result(encode_refusal(self.node_id, task.run.run_id, task.message_id, code, str(refusal)), {}, None)
        except BaseException as error:  # SystemExit and asyncio's CancelledError come from the app, too
            self.drop(task.run.run_id)
            return Result(self._refuse(task, error), {}, None, type(error).__name__)

    def _context_of(self, task: Task) -> "_RunContext":
        if task.state is None:
            kept = self._contexts.get(task.run.run_id)
            if kept is None:
                raise NoStateError
            return kept
        try:
            kept = _RunContext(task.run, self.node_id, dict(self._node_config), task.state)
        except FrameError as error:
            raise FrameError(f"the run's context.state was written by another version: {error}") from None
        self._contexts[task.run.run_id] = kept
        return kept

    def _refuse(self, task: Task, error: BaseException) -> Fields:
        kind, trace = shown(task.metadata.message_type), sendable(traceback.format_exc().rstrip())
        if self._is_stopping():
            log(
                WARNING,
                "The ClientApp raised an exception on a message of type %s after the node was told to stop; "
                "the message stays open\n%s",
                kind,
                trace,
            )
            raise InterruptedExecution from error
        log(ERROR, "The ClientApp raised an exception on a message of type %s\n%s", kind, trace)
        reason = f"{type(error).__name__}: {_text(error) if self.shares_text else NOT_SHARED}"
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return encode_refusal(self.node_id, task.run.run_id, task.message_id, code, reason)

    # States.

    def has_state_of(self, run_id: int) -> bool:
        """Return whether the next task of this run need not have the state."""
        return run_id in self._contexts

    def drop(self, run_id: int) -> None:
        """Forget the state of a run, with its changes: the next task has to have the state."""
        self._contexts.pop(run_id, None)

    def keep_only(self, run_ids: Iterable[int]) -> None:
        """Drop the states of runs that are over."""
        for run_id in set(self._contexts).difference(run_ids):
            self.drop(run_id)

    def clear(self) -> None:
        """Drop all states."""
        self._contexts.clear()


class _RunContext:
    """One run's Context, and a digest of its state as it last was.

    Attributes:
        context: passed to the ClientApp with every message of the run.
        is_cancelled: that of the message being executed.
    """

    def __init__(self, run: Run, node_id: int, node_config: UserConfig, fields: Fields) -> None:
        self.is_cancelled: Callable[[], bool] = lambda: False
        state = decode_content(fields) if fields else RecordSet()
        self._digest = digest_of(encode_content(state)) if fields else b""
        self.context = Context(
            run.run_id, node_id, node_config, state, dict(run.run_config), lambda: self.is_cancelled()
        )

    def changed_state(self) -> Fields | None:
        """Return the fields of the state if it changed since the last call, else None.

        Raises:
            TypeError, ValueError, MessageTooLarge: it cannot be encoded.
        """
        state = self.context.state
        if not state and not self._digest:
            return None
        fields = encode_content(state)
        for data in fields.values():
            if len(data) > MOST_BYTES:
                raise MessageTooLarge(
                    f"an array of context.state has {len(data):,} bytes; the limit is {MOST_BYTES:,} bytes: split it"
                )
        digest = digest_of(fields)
        if digest == self._digest:
            return None
        self._digest = digest
        return fields


def _text(error: BaseException) -> str:
    """Return the text of an exception; user code may have broken even that."""
    try:
        return str(error)
    except Exception:
        return "(its text is not available)"
