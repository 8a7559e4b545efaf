"""The rehearsal: an app runs with replies that were recorded, and without Redis.

Owns what stands in for a Driver then. The n-th message of a type to a node gets the reply that the n-th such message
got, whatever either says. It must not know how replies were recorded.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from logging import INFO
from typing import Any

from brokerfl.broker.node_info import NodeInfo
from brokerfl.common import SUPERLINK_NODE_ID, Context, Error, ErrorCode, Message, RecordSet, UserConfig, log
from brokerfl.common.form import Form, Like
from brokerfl.server.driver import Driver
from brokerfl.server.playback import Playback
from brokerfl.server.results import T
from brokerfl.server.tape import Recorded
from brokerfl.wire.message import check_message
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.record import encode_content
from brokerfl.wire.reply import error_reply
from brokerfl.wire.run import LedgerEntry


class _NoRecord:
    """Records no steps: nothing is resumed."""

    head = None
    fields: dict[bytes, bytes] = {}  # noqa: RUF012  # it never changes
    is_kept = False
    executed = 0

    def read(self, name: str) -> None:
        return None

    def tell(self, server_round: int) -> None:
        return None

    def mark(self) -> int:
        return 0

    def known(self, ndarray: Any) -> None:
        return None

    def upload(self, value: RecordSet, *, is_model: bool = False) -> EncodedContent:
        return EncodedContent(encode_content(value))

    def keep(self, contents: Collection[bytes]) -> None:
        return None

    def settle(self, contents: Collection[bytes]) -> None:
        return None

    def has(self, content: bytes) -> bool:
        return True


class Rehearsal:
    """Stands in for a `Driver`, and for a run that was recorded.

    Args:
        tape: what was recorded.
        run_config: replaces values of the recorded one.

    Attributes:
        replayed: how many messages got a recorded reply.
        unanswered: how many did not.
    """

    create_message = Driver.create_message

    def __init__(self, tape: Recorded, run_config: UserConfig | None = None) -> None:
        self.run = tape.run
        self._run_id = self.run.run_id
        self._tape = tape
        config = self.run.run_config | (run_config or {})
        self.context = Context(self._run_id, SUPERLINK_NODE_ID, {}, RecordSet(), config, lambda: False)
        self.record = _NoRecord()
        self.replayed = self.unanswered = 0
        playback = Playback(self._run_id, tape.entries)
        self._entries: dict[tuple[int, str], deque[Sequence[Any] | None]] = defaultdict(deque)
        for pushed in playback.pushed:
            entry = playback.replies.get(pushed.message_id)
            self._entries[pushed.node_id, pushed.message_type].append(entry)
        self._places = {id(entry): place for place, entry in enumerate(playback.replies.values())}
        self._nodes = sorted({pushed.node_id for pushed in playback.pushed})
        self._told = playback.told
        self._open: dict[str, tuple[Message, Sequence[Any] | None]] = {}
        self._count = 0

    # Nodes.

    def get_node_ids(self) -> list[int]:
        """Return the nodes as the recorded app was told them; then all of them."""
        return self._next_told(waits=False)

    def wait_for_nodes(self, n: int, timeout: float | None = None) -> list[int]:
        """As `get_node_ids`.

        Raises:
            TimeoutError: as the recorded app, which waited in vain.
        """
        return self._next_told(waits=True)

    def _next_told(self, *, waits: bool) -> list[int]:
        told = self._told.nodes(waits=waits)
        return list(self._nodes) if told is None else told

    def get_nodes(self) -> list[NodeInfo]:
        """Return what the recorded app was told of nodes; then all of them, without names."""
        told = self._told.infos()
        return [NodeInfo(node_id, online=True) for node_id in self._nodes] if told is None else told

    # Messages.

    def push_messages(
        self, messages: Iterable[Message], *, deliver_when_online: bool = False, checkpoint: Any = False
    ) -> list[str]:
        """Give each message the next recorded reply of its node and type; return ids."""
        batch = [check_message(message, self._run_id) for message in messages]
        for message in batch:
            self._count += 1
            message.metadata.message_id = f"replayed-{self._count}"
            entries = self._entries[message.metadata.dst_node_id, message.metadata.message_type]
            self._open[message.metadata.message_id] = message, entries.popleft() if entries else None
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str], *, like: Like | None = None) -> list[Message]:
        """Return the replies to these messages, each only once."""
        return list(self.replies(message_ids, like=like))

    def replies(
        self, message_ids: Iterable[str], *, timeout: float | None = None, like: Like | None = None
    ) -> Iterator[Message]:
        """Yield the replies to these messages, in the order in which they were recorded; then Errors for the rest."""
        form = Form.of(like)
        asked = [self._open.pop(each) for each in dict.fromkeys(message_ids) if each in self._open]
        last = len(self._places)
        for message, entry in sorted(asked, key=lambda each: self._places.get(id(each[1]), last)):
            yield self._reply(message, entry, form)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        deliver_when_online: bool = False,
        checkpoint: Any = False,
        like: Like | None = None,
    ) -> list[Message]:
        """Push messages and return the replies to them."""
        return list(self.replies(self.push_messages(messages), like=like))

    def _reply(self, message: Message, entry: Sequence[Any] | None, form: Form | None) -> Message:
        meta = message.metadata
        if entry is None:
            self.unanswered += 1
            return self._error(message, f"the recording has no further reply of node {meta.dst_node_id}")
        self.replayed += 1
        reply = self._tape.message(entry)
        reply.metadata.message_id, reply.metadata.reply_to_message = f"{meta.message_id}-reply", meta.message_id
        reply.metadata.group_id = meta.group_id
        misfit = form.misfit(reply.content) if form is not None and reply.has_content() else None
        return reply if misfit is None else self._error(message, f"the reply does not fit: {misfit}")

    def _error(self, message: Message, reason: str) -> Message:
        meta = message.metadata
        entry = LedgerEntry(meta.dst_node_id, meta.group_id, meta.message_type, 0)
        return error_reply(self._run_id, meta.message_id, entry, Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))

    # What has no effect without a run.

    def step(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call the function."""
        return function(*arguments)

    def log_metrics(self, round: int | str, /, **values: float) -> None:
        """Log the numbers."""
        log(INFO, "Round %s: %s", round, ", ".join(f"{name}={value:g}" for name, value in values.items()))

    def unsettled(self, message: Message) -> int:
        """Return 0."""
        return 0

    def checkpoint(self) -> None:
        """Do nothing."""

    def start_over(self) -> None:
        """Do nothing."""

    def settle(self, *replies: Message) -> None:
        """Do nothing."""

    def cancel_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> None:
        """Do nothing: what was not answered was recorded as that."""
