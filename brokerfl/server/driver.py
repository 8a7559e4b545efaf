"""Driver: how a ServerApp sends messages and collects replies.

Owns the calls that an app makes. `hold` owns what is behind them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack

from brokerfl.broker.connection import Connection
from brokerfl.broker.node_info import NodeInfo
from brokerfl.broker.patience import ends_at, within
from brokerfl.common import DEFAULT_TTL, SUPERLINK_NODE_ID, Message, Metadata, RecordSet, RunError, UserConfig
from brokerfl.common.forked import belong_here
from brokerfl.common.form import Form, Like
from brokerfl.server.hold import Options, Settings, create, take_over
from brokerfl.server.online import OnlineNodes
from brokerfl.server.record import Stage
from brokerfl.server.report import Report
from brokerfl.server.results import T
from brokerfl.wire.message import check_message, check_metadata, is_message_id
from brokerfl.wire.reply import unknown_reply
from brokerfl.wire.run import Run


class Driver:
    """Sends messages to nodes and collects their replies, for one run.

    Safe to use from many threads. In a process that was forked from its own, every call raises RuntimeError.

    `brokerfl-server` and `brokerfl.testing` create one and pass it to the ServerApp's main function. Once the run is
    over for this process, every call except `push_messages` raises RunStopped, RunFenced, RunLost or OutageLimit.

    Args:
        connection: to Redis.
        app: the app's name, as the operator sees it; for a resumed run the same, or "".
        run_config: for the Context of the ServerApp and of every node; for a resumed run None, or the same.
        resume: the id of a detached run to resume, instead of creating one.
        takeover: resume it even if its ServerApp seems to be alive, which from then on can write nothing.
        options: times and limits, and where the app comes from: the fields of `Settings`.

    Attributes:
        connection: to Redis.
        context: the ServerApp's Context. Every push of a new group and every `checkpoint` saves its state in Redis, in
            the transaction that settles replies; a resumed run gets it back.
        record: of the steps of a loop that is not the app's own, as `brokerfl.flower` makes it.

    Raises:
        RunNotFound, RunStopped: the run does not exist, or was stopped.
        RunAttached: the run has a live ServerApp.
        ConfigError: the run has another run config or belongs to another app; the run config exceeds 64 KiB or holds a
            value that is not a boolean, number or string; the retention is too long.
        ValueError: the run config holds a value that cannot be sent.
        TypeError: an option is unknown.
    """

    def __init__(
        self,
        connection: Connection,
        app: str = "",
        run_config: UserConfig | None = None,
        *,
        resume: int | None = None,
        takeover: bool = False,
        **options: Unpack[Options],
    ) -> None:
        settings = Settings(**options)
        self._round_timeout = settings.round_timeout
        if resume is None:
            self._hold = create(connection, app, run_config or {}, settings)
        else:
            self._hold = take_over(connection, resume, app, run_config, settings, takeover=takeover)
        self.connection, self._run_id = connection, self._hold.run.run_id
        self._session, self._replies, self._book = self._hold.session, self._hold.replies, self._hold.book
        self._nodes = OnlineNodes(connection, self._session, self._hold.progress)
        self.context, self.record = self._hold.context, self._hold.record
        belong_here(self, self._replies, self._book.answers)

    def __repr__(self) -> str:
        return f"<Driver run={self._run_id} open={len(self._book)}>"

    @property
    def run(self) -> Run:
        """The run: run_id, app, run_config, created_at."""
        return self._hold.run

    @property
    def report(self) -> Report:
        """What the run is doing, and what became of its messages so far."""
        return self._hold.report

    # Nodes.

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are online now, in ascending order."""
        return self._nodes.ids()

    def get_nodes(self) -> list[NodeInfo]:
        """Return what the registry says of the nodes that are online now; reads more than `get_node_ids` does."""
        return self._nodes.infos()

    def wait_for_nodes(self, n: int, timeout: float | None = None) -> list[int]:
        """Wait until at least ``n`` nodes are online, for ``timeout`` seconds or forever, and return their ids.

        Raises:
            TimeoutError: fewer nodes came online in time; the text says how many, or that Redis does not answer.
        """
        return self._nodes.wait(n, timeout)

    # Sending.

    def create_message(
        self, content: RecordSet, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message of this run, for `push_messages`.

        Args:
            content: what to send. It is read when the message is pushed, not now.
            message_type: ``train``, ``evaluate`` or ``query``, optionally with an action: ``train.warmup``.
            dst_node_id: the node's id.
            group_id: usually the round. Pushing one that is not among the last 1,000 of the run moves it on: replies
                handed over so far are settled.
            ttl: seconds after which the message counts as expired, from its push and even if the clock of Redis is set;
                12 hours by default. A push that comes so long after this call refuses it.

        Raises:
            ValueError: an impossible message type or ttl.
        """
        lives = DEFAULT_TTL if ttl is None else float(ttl)
        metadata = Metadata(self._run_id, "", SUPERLINK_NODE_ID, dst_node_id, "", group_id, lives, message_type)
        check_metadata(metadata)
        return Message(metadata, content=content)

    def push_messages(
        self, messages: Iterable[Message], *, deliver_when_online: bool = False, checkpoint: bool | Stage = False
    ) -> list[str]:
        """Send messages and return their ids in order; "" for one that was refused. The ids are also set in them.

        Keep the ids while you may still ask for the replies (docs/guarantees.md, "What is left behind").

        A message is refused if its node is not registered, if its ttl has passed, or if the run is over or is being
        drained. Contents are frozen now. In a resumed run, a message adopts an unsettled one of the same group, node
        and type: that one's id is returned, and the node does not execute it again.

        Args:
            messages: made by `create_message`.
            deliver_when_online: wait for nodes that are offline, or not registered yet, until the messages' ttl,
                instead of Error 5.
            checkpoint: move the run on, as `checkpoint` does, in the transaction of the push, no matter which group it
                has. For apps whose groups do not distinguish rounds; so in a resumed run, only a message of equal
                content is adopted.

        Raises:
            TypeError, ValueError: something is not a message of this run or cannot be sent; nothing was pushed.
            MessageTooLarge: a content exceeds `brokerfl.wire.frame.MAX_MESSAGE_BYTES`, or the run its limit in Redis,
                or a group_id has more than about 48,000 bytes; nothing was pushed.
            RedisOutOfMemory: Redis is full; nothing was pushed, or only the first part of what exceeds 64 MB.
            OutageLimit: Redis was unreachable for too long; as for RedisOutOfMemory.

        If a part was pushed, the exception has its ids: `BrokerflError.message_ids`. Wait for them with `replies`, or
        push all again: those that were pushed are adopted, as after a resume.
        """
        batch = [check_message(message, self._run_id) for message in messages]
        try:
            ids = self._hold.pusher.push(batch, waits=deliver_when_online, moves_on=checkpoint)
        except RunError as error:
            self._hold.waits.end(error)
            ids = [""] * len(batch)
        for message, message_id in zip(batch, ids, strict=True):
            message.metadata.message_id = message_id
        return ids

    def checkpoint(self) -> None:
        """Move the run on: in one transaction, save `context.state` and settle the replies handed over so far.

        For asynchronous apps, which push only one group. Call it once the state holds what the replies taught.

        Raises:
            RedisOutOfMemory, MessageTooLarge, TypeError, ValueError: there is no room for the state, or it cannot be
                encoded; nothing was saved.
        """
        self._hold.pusher.checkpoint()

    def step(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function and return its result; in a resumed run that has recorded the result, do not call it.

        The result is recorded when the run next moves on, which it does not do while the function runs and has replies
        (docs/guarantees.md, "Steps of an app"). A name is used once in a run, and has at most 200 characters.

        Raises:
            TypeError, ValueError: the result has a type that no record holds, or the name was used before.
            MessageTooLarge, RedisOutOfMemory, OutageLimit: there is no room for the result, as for a push.
        """
        return self._hold.results.take(name, function, arguments)

    def unsettled(self, message: Message) -> int:
        """Return to how many messages of the same group, node and type the app has replies that are not settled."""
        meta = message.metadata
        return self._book.answers.unsettled((meta.group_id, meta.dst_node_id, meta.message_type))

    def start_over(self) -> None:
        """Cancel what the run had not settled before it was resumed, so that nothing pushed from now on adopts it.

        For a resumed app that starts from the beginning. In a new run it does nothing.
        """
        self._hold.pusher.start_over()

    def settle(self, *replies: Message) -> None:
        """Settle replies now, before the run moves on, so that Redis need not hold those of all nodes at once.

        For apps that fold large replies. Nothing is saved: if this process dies before the next commit, the resumed app
        has these messages executed again when it pushes them. What `replies` or `pull_messages` did not return is
        ignored.

        Raises:
            TypeError: something is not a Message.
        """
        for reply in replies:
            if not isinstance(reply, Message):
                raise TypeError(f"settle() takes replies, not {type(reply).__name__}")
        self._hold.committer.settle([reply.metadata.reply_to_message for reply in replies])

    def cancel_messages(self, message_ids: Iterable[str], *, timeout: float | None = None) -> None:
        """Cancel messages: each ends at once as Error 3, unless its reply has arrived.

        A node that has not started does not execute it. In one that has, ``context.cancelled()`` becomes true within a
        second or so, if the app asks it and Redis answers. What Redis has of a cancelled message is deleted when the
        run moves on.

        Args:
            message_ids: as `push_messages` returned them.
            timeout: seconds to wait while Redis cannot be reached; None waits until the run detaches.

        Raises:
            RedisUnreachable: time was up; nothing was cancelled.
            RedisOutOfMemory: Redis is full and forgot something that has to be written first; nothing was cancelled.
        """
        accepted, _ = self._sort(message_ids)
        self._hold.verdicts.cancel(accepted, ends_at(timeout))

    # Collecting.

    def pull_messages(self, message_ids: Iterable[str], *, like: Like | None = None) -> list[Message]:
        """Return the replies to ``message_ids`` that have arrived, each only once; do not wait for others.

        The content of a large reply is fetched from Redis first. An id that no push of this run returned is Error 3.
        While Redis is silent, this returns after about a second, with what was read before.
        Nodes are checked only while the app pulls or waits: pull at least every 10 seconds, or use `replies`.

        Args:
            message_ids: as `push_messages` returned them; ``""`` is ignored.
            like: as for `replies`.
        """
        form = Form.of(like)
        wanted, foreign = self._sort(message_ids)
        unknown, now = [unknown_reply(self._run_id, each) for each in foreign], time.monotonic()
        within(now, self._hold.waits.poll)
        return unknown + self._replies.all(wanted, now, form)

    def replies(
        self, message_ids: Iterable[str], *, timeout: float | None = None, like: Like | None = None
    ) -> Iterator[Message]:
        """Yield each reply to ``message_ids`` as soon as it arrives, until all have arrived.

        A reply is handed over when the iterator advances past it, or when the thread, or task of an executor, commits
        whose loop this is: the one that called `replies`, or loops over what it returned (docs/guarantees.md, "Threads
        and executors"). A large one is fetched when its turn comes, and not kept: an app that folds replies needs
        memory for one large one at a time if it deletes each (``del reply``) before it asks for the next.

        Args:
            message_ids: as `push_messages` returned them; ``""`` is ignored.
            timeout: seconds for all of them together; then the iteration ends, at most about a second later if Redis is
                silent. None is the option ``round_timeout``; without it, a node that is online and silent is waited for
                until its message's ttl.
            like: what the content of each reply has to be like; one that is not is Error 4, and its reason says what
                differs. A ParametersRecord, such as the model: the reply has to have one, with arrays of the same names
                in the same order, of the same dtypes and shapes, without NaN and infinity. A RecordSet: the reply has
                to have each of its records; of metrics and configs the same keys, with finite values of the same types.

        Raises:
            TypeError: ``like`` is something else.
        """
        form, ids = Form.of(like), list(message_ids)
        wanted, foreign = self._sort(ids)
        until = ends_at(self._round_timeout if timeout is None else timeout)
        return self._replies.each((unknown_reply(self._run_id, each) for each in foreign), wanted, until, form, ids)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        deliver_when_online: bool = False,
        checkpoint: bool | Stage = False,
        like: Like | None = None,
    ) -> list[Message]:
        """Push messages and wait for their replies, in the order in which they arrive.

        Each message gets one reply, a refused one an Error reply.

        Args:
            messages: as for `push_messages`, which also lists the exceptions.
            timeout: in seconds from the end of the push, as for `replies`; then the replies so far are returned. The
                others can still be pulled by id: see `Message.metadata`. A push has no timeout: while Redis does not
                answer, it waits, up to the outage limit.
            deliver_when_online: as for `push_messages`.
            checkpoint: as for `push_messages`.
            like: as for `replies`.
        """
        batch, form = list(messages), Form.of(like)
        ids = self.push_messages(batch, deliver_when_online=deliver_when_online, checkpoint=checkpoint)
        self._session.check()
        refused = self._replies.refused(batch, self._hold.pusher.refused)
        accepted, _ = self._sort(ids)
        until = ends_at(self._round_timeout if timeout is None else timeout)
        return refused + self._replies.all(accepted, until, form)

    def _sort(self, message_ids: Iterable[str]) -> tuple[set[str], list[str]]:
        """Divide ids into those that this run accepted at some time and those that it never did."""
        accepted, foreign = set(), []
        for message_id in dict.fromkeys(message_ids):
            if message_id in self._book or is_message_id(self._run_id, message_id):
                accepted.add(message_id)
                self._book.claim(message_id)
            elif message_id != "":
                foreign.append(message_id)
        return accepted, foreign

    # The life of the run.

    def log_metrics(self, round: int | str, /, **values: float) -> None:
        """Tell numbers of a round, for whoever looks at the run: ``driver.log_metrics(3, loss=0.2, accuracy=0.9)``.

        At most 50 at once, with names of at most 64 characters; else TypeError or ValueError. Nothing depends on them.
        """
        self._session.check()
        self._session.diary.tell(str(round), values)

    def end(self) -> None:
        """End the run: all its keys are deleted, and later pushes are refused."""
        self._hold.end()

    def abandon(self) -> None:
        """From now on, every wait in any thread raises RunStopped. Call `detach` next."""
        self._hold.abandon()

    def detach(self) -> None:
        """Detach from the run without ending it: its keys stay for the retention time. Redis may be unreachable."""
        self._hold.detach()
