"""A Driver that records what its app gets, and gives it back to the app of a resumed run.

Owns when something is recorded and synced, and which messages of a resumed run are pushed for real. It must not know
files.

A hand-written loop begins at its start after a resume, with an empty state. Its pushes are matched with the recorded
ones, and its replies come from the tape; a message without a recorded reply is adopted, if the run has it still. When
all recorded messages were pushed again, the app is live.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from logging import INFO
from typing import Any

from brokerfl.broker.connection import Connection
from brokerfl.broker.node_info import NodeInfo
from brokerfl.common import Message, RunDiverged, log
from brokerfl.common.form import Form
from brokerfl.server.book.orphans import Match
from brokerfl.server.driver import Driver
from brokerfl.server.playback import Playback, Pushed
from brokerfl.server.record import Stage
from brokerfl.server.replies import Replies
from brokerfl.server.results import T
from brokerfl.server.tape import Tape
from brokerfl.server.told import Told
from brokerfl.wire.message import check_message


class Recorder(Driver):
    """Like a `Driver`.

    Args:
        open_tape: opens the tape of a run, given its id.
        connection, arguments, resume, options: as for a Driver.

    Raises:
        ConfigError, RunAttached: as `Tape`.
    """

    def __init__(
        self,
        open_tape: Callable[[int], Tape],
        connection: Connection,
        *arguments: Any,
        resume: int | None = None,
        **options: Any,
    ) -> None:
        self._playing = threading.RLock()
        # Before a run is taken from anybody: the tape may be elsewhere.
        tape = None if resume is None else open_tape(resume)
        try:
            super().__init__(connection, *arguments, resume=resume, **options)
            self._tape = tape = tape or open_tape(self.run.run_id)
            tape.begin(self.run)
            self._hold.progress.recorded_at = self._tape.place
            # A loop that records its steps goes on with those.
            self._begin(() if self._tape.is_over or self.record.fields else self._tape.entries)
            self._hold.tell()
        except BaseException:
            if tape is not None:
                tape.close()
            if hasattr(self, "_hold"):
                super().detach()
            raise

    def _begin(self, entries: Iterable[Sequence[Any]]) -> None:
        self._playback = playback = Playback(self.run.run_id, entries)
        self._is_resumed = playback.is_behind
        self._orphans: set[str] = set()
        if self._is_resumed:
            self.context.state.clear()
            self._hold.committer.cancel_orphans(playback.replies)
            self._orphans = {orphan.message_id for orphan in self._book.orphans()}
            self.record.is_replayed = True
            count = len(playback.replies)
            said = "1 execution is" if count == 1 else f"{count} executions are"
            log(INFO, "Run %s goes through its recording: %s not repeated", self.run.run_id, said)
        self._replies: Any = _Replies(self._hold.replies, self._tape, playback, self._orphans)

    # Sending.

    def push_messages(
        self, messages: Iterable[Message], *, deliver_when_online: bool = False, checkpoint: bool | Stage = False
    ) -> list[str]:
        """As a Driver; what the recording has a reply to is not pushed.

        Raises:
            RunDiverged: the recording has another message.
        """
        batch = [check_message(message, self.run.run_id) for message in messages]
        with self._playing:
            self._tape.sync()
            former = self._former(batch)
            if former is None:
                ids = super().push_messages(batch, deliver_when_online=deliver_when_online, checkpoint=checkpoint)
                if not self.context.cancelled() and batch:
                    self._tape.push(list(zip(ids, batch, strict=True)))
                return ids
            due = [message for message, each in zip(batch, former, strict=True) if self._is_due(each)]
            if due:
                # By their places, whatever their contents are: each of them was pushed before.
                stage = checkpoint if isinstance(checkpoint, Stage) else Stage(checkpoint or None)
                stage = stage._replace(match=Match(after=-1.0))
                super().push_messages(due, deliver_when_online=deliver_when_online, checkpoint=stage)
            for message, each in zip(batch, former, strict=True):
                self._note_again(message, each)
            if not self._playback.is_behind:
                log(INFO, "Run %s has gone through its recording, and goes on", self.run.run_id)
            return [message.metadata.message_id for message in batch]

    def _former(self, batch: Sequence[Message]) -> list[Pushed] | None:
        """Return the recorded messages that a push is; None if it is a new one."""
        if not batch or not self._playback.is_behind:
            return None
        try:
            found = [self._playback.match(message) for message in batch]
            if None in found:
                raise RunDiverged(
                    f"run {self.run.run_id} cannot go on: its recording ends in the middle of a push of {len(batch)} "
                    "messages; resume it with the app and the config that it was started with, or begin anew with "
                    "--from-start"
                )
        except RunDiverged as error:
            self._hold.waits.end(error)
            raise
        return [each for each in found if each is not None]

    def _is_due(self, former: Pushed) -> bool:
        message_id = former.message_id
        return message_id in self._orphans

    def _note_again(self, message: Message, former: Pushed) -> None:
        if not self._is_due(former):
            message.metadata.message_id = former.message_id
            return
        message_id = message.metadata.message_id
        if message_id not in ("", former.message_id):
            self._tape.again(former.message_id, str(message_id))
            self._playback.ids.discard(former.message_id)

    def checkpoint(self) -> None:
        """As a Driver; in a recording there is nothing to settle."""
        self._tape.sync()
        if not self._playback.is_behind:
            super().checkpoint()

    def start_over(self) -> None:
        """As a Driver; an app that goes through a recording begins at its start anyway."""
        if not self._is_resumed:
            super().start_over()

    def settle(self, *replies: Message) -> None:
        """As a Driver."""
        self._tape.sync()
        super().settle(*replies)

    def log_metrics(self, round: int | str, /, **values: float) -> None:
        """As a Driver; what was told before is not told again."""
        if not self._playback.is_behind:
            super().log_metrics(round, **values)

    # Collecting.

    def get_node_ids(self) -> list[int]:
        """As a Driver; in a recording those that were online then."""
        return self._told(super().get_node_ids, waits=False)

    def get_nodes(self) -> list[NodeInfo]:
        """As a Driver; in a recording what was told then, without what they were doing and with which code."""
        recorded = self._recall(Told.infos)
        if recorded is not None:
            return recorded
        found = super().get_nodes()
        self._tape.infos(found)
        return found

    def wait_for_nodes(self, n: int, timeout: float | None = None) -> list[int]:
        """As a Driver; in a recording those that were online then."""
        return self._told(lambda: super(Recorder, self).wait_for_nodes(n, timeout), waits=True)

    def _told(self, ask: Callable[[], list[int]], *, waits: bool) -> list[int]:
        recorded = self._recall(lambda told: told.nodes(waits=waits))
        if recorded is not None:
            return recorded
        try:
            found = ask()
        except TimeoutError as error:
            self._tape.waited(error)
            raise
        self._tape.nodes(found)
        return found

    def _recall(self, take: Callable[[Told], T | None]) -> T | None:
        with self._playing:
            return take(self._playback.told) if self._playback.is_behind else None

    def end(self) -> None:
        """As a Driver; the recording stays."""
        super().end()
        self._tape.close()

    def detach(self) -> None:
        """As a Driver."""
        super().detach()  # first: from then on no thread can settle what is not recorded
        self._tape.close()


class _Replies:
    """Hands over recorded replies, and records others. Takes the place of a Driver's `Replies`."""

    def __init__(self, live: Replies, tape: Tape, playback: Playback, orphans: Collection[str]) -> None:
        self._live = live
        self._tape = tape
        self._playback = playback
        self._orphans = orphans
        self._lock = threading.Lock()

    def each(
        self,
        first: Iterable[Message],
        message_ids: set[str],
        until: float | None,
        form: Form | None = None,
        ids: Sequence[str] = (),
    ) -> Iterator[Message]:
        recorded, rest = self._recall(message_ids)
        loop = self._live.each(first, rest, until, form, ids)
        return _Loop(recorded, loop, self._tape, rest)

    def all(self, message_ids: set[str], until: float | None, form: Form | None = None) -> list[Message]:
        is_pull = until is not None and until <= time.monotonic()
        recorded, rest = self._recall(message_ids)
        found = self._live.all(rest, until, form)
        for reply in found:
            self._tape.reply(reply)
        missing = rest.difference(reply.metadata.reply_to_message for reply in found)
        if missing and not is_pull:
            self._tape.left(missing)
        return recorded + found

    def refused(self, messages: Iterable[Message], refuse: Callable[[Message], Message]) -> list[Message]:
        return self._live.refused(messages, refuse)

    def _recall(self, message_ids: set[str]) -> tuple[list[Message], set[str]]:
        """Return the recorded replies to messages, and the messages whose replies may come yet."""
        with self._lock:
            playback = self._playback
            recorded = [self._tape.message(entry) for entry in playback.take(message_ids)]
            over = message_ids & playback.left
            playback.left -= over
            # Of a former ServerApp's messages, only those may be answered that the run still has.
            gone = {each for each in message_ids if each in playback.ids and each not in self._orphans}
            return recorded, message_ids - over - gone


class _Loop:
    """Iterates over recorded replies, then over others, which it records."""

    def __init__(self, recorded: list[Message], live: Iterator[Message], tape: Tape, waited: set[str]) -> None:
        self._recorded = deque(recorded)
        self._live = live
        self._tape = tape
        self._waited = set(waited)

    def __iter__(self) -> "_Loop":
        iter(self._live)  # it notes whose loop it is
        return self

    def __next__(self) -> Message:
        if self._recorded:
            return self._recorded.popleft()
        try:
            reply = next(self._live)
        except StopIteration:
            if self._waited:
                self._tape.left(self._waited)
                self._waited = set()
            raise
        self._waited.discard(reply.metadata.reply_to_message)
        self._tape.reply(reply)
        return reply
