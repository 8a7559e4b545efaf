"""The runner: has the ClientApp execute one message after the other.

Owns the Context of each run, and that what an app raised leaves no trace in it. It is given fields and a state, and
returns fields and a state. It must not know Redis, the journal, or where contents and states are kept.
"""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import ERROR

from brokerfl.client.app import ClientAppCallable
from brokerfl.client.reply import encode_refusal, encode_reply, printable
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
from brokerfl.wire.frame import Fields
from brokerfl.wire.record import decode_content, digest_of, encode_content
from brokerfl.wire.run import Run

#: Bytes of one array of a state: what SQLite takes (SQLITE_MAX_LENGTH, https://www.sqlite.org/limits.html).
MOST_BYTES = 1_000_000_000


class NoStateError(Exception):
    """The runner has no state of the run, and was given none."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the runner is given.

    Attributes:
        run: whose message.
        message_id: its id.
        metadata: what it says of itself.
        content: its fields, those of a large content among them.
        state: the state's fields, empty when the run never had any; None when the runner has the state as it is now.
        is_cancelled: tells the app whether nobody wants the reply any more.
    """

    run: Run
    message_id: str
    metadata: Metadata
    content: Fields
    state: Fields | None
    is_cancelled: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Result:
    """What the runner returns.

    Attributes:
        head: the reply's fields without its content.
        content: its content, empty beside an error. It may share memory with the app.
        state: the state's fields if it changed, else None. They may share memory with the app.
    """

    head: Fields
    content: Fields
    state: Fields | None


class Runner:
    """Executes messages with one ClientApp. Safe to share between threads that each have a run of their own.

    Args:
        app: the ClientApp, or a function that takes its place.
        node_id: whose.
        node_config: given to every Context.
    """

    def __init__(self, app: ClientAppCallable, node_id: int, node_config: UserConfig) -> None:
        self.node_id = node_id
        self._app = app
        self._node_config = dict(node_config)
        self._contexts: dict[int, _RunContext] = {}

    def run(self, task: Task) -> Result:
        """Execute one message; what the app raises becomes an Error reply, and its change of the state is undone.

        Raises:
            NoStateError: the state is missing.
            FrameError: the message or the state cannot be read.
        """
        kept = self._context_of(task)
        message = Message(task.metadata, content=decode_content(task.content))
        kept.is_cancelled = task.is_cancelled
        try:
            reply = self._app(message, kept.context)
            head, content = encode_reply(self.node_id, task.run.run_id, task.message_id, task.metadata, reply)
            return Result(head, content, kept.changed_state())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, or what asyncio cancels with: it is the app's all the same
            self.drop(task.run.run_id)
            return Result(self._refuse(task, error), {}, None)

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
        log(
            ERROR,
            "The ClientApp raised an exception on a message of type %s\n%s",
            task.metadata.message_type,
            printable(traceback.format_exc().rstrip()),
        )
        reason = f"{type(error).__name__}: {_text(error)}"
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return encode_refusal(self.node_id, task.run.run_id, task.message_id, code, reason)

    # States.

    def has_state_of(self, run_id: int) -> bool:
        """Return whether a task of this run need not bring the state."""
        return run_id in self._contexts

    def drop(self, run_id: int) -> None:
        """What was done to the state of a run is undone: its next task brings the state."""
        self._contexts.pop(run_id, None)

    def keep_only(self, run_ids: Iterable[int]) -> None:
        """Drop the states of runs that are over."""
        for run_id in set(self._contexts).difference(run_ids):
            self.drop(run_id)

    def clear(self) -> None:
        """Drop all."""
        self._contexts.clear()


class _RunContext:
    """One run's Context, and what its state was when it was last looked at.

    Attributes:
        context: given to the ClientApp with every message of the run.
        is_cancelled: of the message that is being executed.
    """

    def __init__(self, run: Run, node_id: int, node_config: UserConfig, fields: Fields) -> None:
        self.is_cancelled: Callable[[], bool] = lambda: False
        state = decode_content(fields) if fields else RecordSet()
        self._digest = digest_of(encode_content(state)) if fields else b""
        self.context = Context(
            run.run_id, node_id, node_config, state, dict(run.run_config), lambda: self.is_cancelled()
        )

    def changed_state(self) -> Fields | None:
        """Return the fields of the state if it is another one than last time, else None.

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
    """Return what an exception says; user code may have broken even that."""
    try:
        return str(error)
    except Exception:
        return "(its text is not available)"
