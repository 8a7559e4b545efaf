"""flwr's Grid (its Driver, up to 1.16), built on brokerfl's Driver.

Owns what flwr's strategies rely on: contents are frozen when they are pushed, every message ends as one reply, many
threads may send at once. It must not know Redis.
"""

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from brokerfl.common import (
    SUPERLINK_NODE_ID,
    Error,
    ErrorCode,
    Message,
    Metadata,
    OutageLimit,
    RecordSet,
    RedisOutOfMemory,
    RedisUnreachable,
    RunError,
)
from brokerfl.flower import compat
from brokerfl.flower.clients import STAND_IN
from brokerfl.flower.context import FlowerState
from brokerfl.flower.message import flower_error_of, flower_message_of
from brokerfl.flower.records import record_set_of
from brokerfl.flower.steps import Steps
from brokerfl.server import Driver
from brokerfl.server.record import Stage

#: Most messages of one type that a node gets in one round: SecAgg+ sends it four, and what it answered is needed until
#: the round is over.
_MOST_OF_A_ROUND = 4


class FlowerGrid(compat.Grid):  # type: ignore[misc]  # of any flwr
    """Sends messages to nodes and collects their replies, for flwr's ServerApp. Safe to use from many threads.

    flwr's strategies seldom name groups. So a push without a group moves the run on: in one transaction,
    ``context.state`` is saved and the replies handed over so far are settled. A push of named groups does so when a
    group is new, as with brokerfl's Driver; and when a message follows `_MOST_OF_A_ROUND` others of the same group,
    node and type whose replies the app has: an asynchronous app may name one group for ever.

    In a strategy's loop, a push does what its steps say instead (`steps`): the first push after a configure hook moves
    the run on, together with the record of the loop, and no other one does.

    Args:
        driver: brokerfl's.
        context: flwr's; a push saves its state.

    Attributes:
        brokerfl_steps: the steps of the loops that this Grid is given to.
    """

    def __init__(self, driver: Driver, context: Any) -> None:
        self._driver = driver
        self._context = context
        self._saving = threading.Lock()
        self.brokerfl_steps = Steps(driver, context, self.save_state)

    def __repr__(self) -> str:
        return f"<FlowerGrid on {self._driver!r}>"

    def set_run(self, run: Any) -> None:
        """Do nothing: a Grid belongs to one run from the start.

        Raises:
            RuntimeError: it is another run.
        """
        run_id = getattr(run, "run_id", run)  # 1.13 takes the id
        if run_id != self._driver.run.run_id:
            raise RuntimeError(f"this Grid belongs to run {self._driver.run.run_id}, not to {run_id}")

    @property
    def run(self) -> Any:
        """A copy of the run: run_id, and in override_config what `--run-config` gave.

        Without a project all of the run config was given. Fields for a SuperLink are empty.
        """
        run = self._driver.run
        given = run.run_config.keys() if run.overrides is None else run.overrides
        return compat.run_of(run.run_id, {key: run.run_config[key] for key in given})

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are online now.

        Raises:
            RunNotRunningException: the run is over; flwr's strategies and threads end with it.
        """
        steps = self.brokerfl_steps
        try:
            if steps.is_configuring:
                return steps.node_ids(self._driver.get_node_ids)
            return self._driver.get_node_ids()
        except (RunError, OutageLimit) as error:
            raise compat.RunNotRunning from error

    def get_nodes(self) -> list[Any]:
        """Return flwr's NodeInfo of each node that is online: id, status, name, and since when.

        Raises:
            RunNotRunningException: the run is over.
        """
        try:
            nodes = self._driver.get_nodes()
        except (RunError, OutageLimit) as error:
            raise compat.RunNotRunning from error
        return [compat.node_info_of(node.node_id, node.name, node.since) for node in nodes]

    def create_message(
        self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Any:
        """Return flwr's Message, for `push_messages`; ``ttl`` in seconds."""
        return compat.message_of(
            content,
            reply_to_message_id="",
            created_at=time.time(),
            run_id=self._driver.run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=dst_node_id,
            group_id=group_id,
            ttl=compat.DEFAULT_TTL if ttl is None else ttl,
            message_type=message_type,
        )

    def save_state(self) -> None:
        """Let the next push save what ``context.state`` holds now."""
        with self._saving:  # of two threads, the last one to save has also read last
            self._driver.context.state = FlowerState(self._context.state)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Send messages; return their ids in the same order, ``""`` where one was refused.

        Raises:
            TypeError, ValueError, BrokerflError: as brokerfl's Driver; nothing was pushed, but for `message_ids`.
            RunStopped, RunFenced, RunLost: the run is over. An app that only pushes would not notice otherwise.
        """
        batch = list(messages)
        ours, stage = self._taken(batch)
        ids = self._driver.push_messages(ours, checkpoint=self._is_checkpoint(ours) if stage is None else stage)
        self.brokerfl_steps.pushed(stage)
        self._stamp(batch, ours)
        if self._driver.context.cancelled():
            self._driver.get_node_ids()  # raises why
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """Return the replies to ``message_ids`` that have arrived, each only once.

        Raises:
            BrokerflError: as brokerfl's Driver.
        """
        return _converted(self._driver.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Push messages and wait for their replies; ``timeout`` in seconds, None waits for all.

        Every message ends as one reply, a refused one as an Error reply: Error 3, also for a node that is unknown. What
        has not come in time is cancelled: the app was never given its id.

        Replies are in the order of their nodes' ids, those of one node in the order of their messages: sums of floats
        depend on the order, so two equal runs give equal results only if it is always the same.

        Raises:
            TypeError, ValueError, BrokerflError: as brokerfl's Driver.
        """
        batch = list(messages)
        if batch and all(message.metadata.dst_node_id == STAND_IN for message in batch):
            return []  # the round is over
        ours, stage = self._taken(batch)
        checkpoint = self._is_checkpoint(ours) if stage is None else stage
        replies = self._driver.send_and_receive(ours, timeout=timeout, checkpoint=checkpoint)
        self.brokerfl_steps.pushed(stage)
        self._stamp(batch, ours)
        if timeout is not None:
            self._cancel({message.metadata.message_id for message in ours}, replies)
        for reply in replies:
            if reply.has_error() and not reply.metadata.reply_to_message:  # it was refused
                reply.error = Error(ErrorCode.MESSAGE_UNAVAILABLE, reply.error.reason)
        places = {message.metadata.message_id: place for place, message in enumerate(ours)}
        replies.sort(key=lambda reply: (reply.metadata.src_node_id, places.get(reply.metadata.reply_to_message, -1)))
        return _converted(replies)

    def _cancel(self, message_ids: set[str], replies: list[Message]) -> None:
        late = message_ids.difference(reply.metadata.reply_to_message for reply in replies)
        if late:
            with suppress(RedisUnreachable, RedisOutOfMemory):  # their replies leave when they come
                self._driver.cancel_messages(late, timeout=0)

    def _taken(self, batch: list[Any]) -> tuple[list[Message], Stage | None]:
        """Return brokerfl's Messages, frozen as they are now, and what their push is to a loop.

        Messages that share a RecordDict share a RecordSet.
        """
        stage = self.brokerfl_steps.stage() if batch else Stage(False)
        if stage is None:
            self.save_state()
        contents: dict[int, RecordSet] = {}
        taken = []
        for message in batch:
            if not isinstance(message, compat.Message):
                raise TypeError(f"expected flwr's Message, not {type(message).__name__}")
            content = message.content
            if id(content) not in contents:
                contents[id(content)] = record_set_of(content)
            taken.append(Message(self._metadata_of(message.metadata), content=contents[id(content)]))
        return taken, stage

    def _is_checkpoint(self, batch: list[Message]) -> bool:
        return any(
            not message.metadata.group_id or self._driver.unsettled(message) >= _MOST_OF_A_ROUND for message in batch
        )

    def _metadata_of(self, metadata: Any) -> Metadata:
        return Metadata(
            run_id=self._driver.run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=metadata.dst_node_id,
            reply_to_message="",
            group_id=metadata.group_id,
            ttl=float(metadata.ttl),
            message_type=metadata.message_type,
            created_at=metadata.created_at,
        )

    def _stamp(self, batch: list[Any], ours: list[Message]) -> None:
        """Copy into flwr's messages what the push wrote into ours, as flwr's own Grids do."""
        for message, pushed in zip(batch, ours, strict=True):
            metadata = pushed.metadata
            compat.stamp(
                message,
                run_id=metadata.run_id,
                src_node_id=metadata.src_node_id,
                message_id=metadata.message_id,
            )


def _converted(replies: list[Message]) -> list[Any]:
    """Return replies as flwr's. Each of ours is released before the next, so that memory never holds them all twice."""
    replies.reverse()
    converted = []
    while replies:
        converted.append(_reply_of(replies.pop()))
    return converted


def _reply_of(reply: Message) -> Any:
    metadata = reply.metadata
    if reply.has_content() and metadata.created_at + metadata.ttl < time.time():  # as a SuperLink judges it
        error = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"the reply's ttl of {metadata.ttl:.3g} s has passed")
        return flower_error_of(metadata, error)
    try:
        return flower_message_of(reply)
    except (TypeError, ValueError) as error:  # a node can send anything
        reason = f"the reply cannot be read: {error}"
        return flower_error_of(metadata, Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))
