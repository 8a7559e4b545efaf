"""The Context of each run that a node keeps from one message to the next.

Owns when a `context.state` is loaded, dropped, and found changed. It must not know messages, nor where states are kept.
"""

import time
from collections.abc import Callable, Iterable

from brokerfl.broker.connection import Connection
from brokerfl.broker.inbox import is_wanted
from brokerfl.client.worklist import Work
from brokerfl.common import BrokerflError, Context, FrameError, MessageTooLarge, RecordSet, UserConfig
from brokerfl.wire.frame import Fields
from brokerfl.wire.record import decode_content, digest_of, encode_content
from brokerfl.wire.run import Run

#: Bytes of one array of a state: what SQLite takes (SQLITE_MAX_LENGTH, https://www.sqlite.org/limits.html).
MOST_BYTES = 1_000_000_000

#: Seconds between two questions whether a running message is still wanted.
_ASK = 1.0


class Contexts:
    """The Context of each run, with the state that the run's last finished message left.

    Safe to share between threads that each have a run of their own.

    Args:
        node_id: whose.
        node_config: given to every Context.
        load: returns the fields of a run's state, None when it never had any.
    """

    def __init__(self, node_id: int, node_config: UserConfig, load: Callable[[int], Fields | None]) -> None:
        self._node_id = node_id
        self._node_config = dict(node_config)
        self._load = load
        self._kept: dict[int, RunContext] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, run: Run) -> "RunContext":
        """Return the context of a run; its state is loaded if it is not at hand.

        Raises:
            JournalError: it cannot be loaded.
            FrameError: another version wrote it.
        """
        kept = self._kept.get(run.run_id)
        if kept is None:
            fields = self._load(run.run_id)
            try:
                kept = RunContext(run, self._node_id, dict(self._node_config), fields)
            except FrameError as error:
                raise FrameError(f"the run's context.state was written by another version: {error}") from None
            self._kept[run.run_id] = kept
        return kept

    def drop(self, run_id: int) -> None:
        """What an execution did to the state is undone: the next one loads it again."""
        self._kept.pop(run_id, None)

    def keep_only(self, run_ids: Iterable[int]) -> None:
        """Drop those of runs that are over."""
        for run_id in set(self._kept).difference(run_ids):
            self.drop(run_id)

    def clear(self) -> None:
        """Drop all."""
        self._kept.clear()


class RunContext:
    """One run's Context, and what its state was when it was last looked at.

    Attributes:
        context: given to the ClientApp with every message of the run.
        execution: the message that is being executed.
    """

    def __init__(self, run: Run, node_id: int, node_config: UserConfig, fields: Fields | None) -> None:
        self.execution: Execution | None = None
        state = RecordSet() if fields is None else decode_content(fields)
        self._digest = b"" if fields is None else digest_of(encode_content(state))
        self.context = Context(run.run_id, node_id, node_config, state, dict(run.run_config), self._is_cancelled)

    def _is_cancelled(self) -> bool:
        return self.execution is not None and self.execution.is_cancelled()

    def changed_state(self) -> Fields | None:
        """Return the fields of the state if it is another one than last time, else None.

        Raises:
            TypeError, ValueError, MessageTooLarge: it cannot be encoded.
        """
        state = self.context.state
        is_empty = not (state.parameters_records or state.metrics_records or state.configs_records)
        if is_empty and not self._digest:
            return None
        fields = encode_content(state)
        for data in fields.values():
            if len(data) > MOST_BYTES:
                raise MessageTooLarge(
                    f"an array of context.state has {len(data):,} bytes, the limit is {MOST_BYTES:,} bytes: divide it"
                )
        digest = digest_of(fields)
        if digest == self._digest:
            return None
        self._digest = digest
        return fields


class Execution:
    """One message that is being executed: whether somebody still wants its reply.

    Args:
        connection: where it came from.
        node_id: who executes it.
        work: the message.
    """

    __slots__ = ("_asked_at", "_connection", "_is_over", "_losses", "_node_id", "_unwanted", "_work")

    def __init__(self, connection: Connection, node_id: int, work: Work) -> None:
        self._connection = connection
        self._node_id = node_id
        self._work = work
        self._losses = connection.losses
        self._asked_at = 0.0
        self._unwanted = self._is_over = False

    def end(self) -> None:
        """From now on nobody is asked: code that goes on in a thread gets the last answer."""
        self._is_over = True

    def is_cancelled(self) -> bool:
        """Ask Redis about the message, at most once a second.

        After a lost connection Redis may have forgotten it, which is no cancellation: its ServerApp pushes it again.
        One that lost all its data will never ask for it again.
        """
        now = time.monotonic()
        if self._work.is_lost:
            return True
        if self._is_over or self._unwanted or now - self._asked_at < _ASK:
            return self._unwanted
        self._asked_at = now
        try:
            wanted = is_wanted(self._connection, self._node_id, self._work.run_id, self._work.entries)
        except BrokerflError:
            return False
        self._unwanted = not wanted and self._connection.losses == self._losses
        return self._unwanted
