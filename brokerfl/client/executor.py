"""The executor: what a node does with one message.

Owns that a message is executed once as far as the journal knows, and that its reply and its change of `context.state`
are committed together. It must not know ClientApp, Redis, or how replies are noted and published.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from logging import ERROR, WARNING

from brokerfl.client.activity import Activity, Execution
from brokerfl.client.aside import Aside
from brokerfl.client.gate import Denied
from brokerfl.client.journal import Answer, Journal
from brokerfl.client.payloads import Payloads
from brokerfl.client.reply import encode_refusal
from brokerfl.client.runner import NoStateError, Result, Runner, Task
from brokerfl.client.runs import Runs
from brokerfl.client.wanted import Wanted, Watch
from brokerfl.client.worklist import Work
from brokerfl.common import ErrorCode, FrameError, Metadata, log
from brokerfl.common.logger import trace
from brokerfl.common.text import shown
from brokerfl.wire.frame import MANIFEST, Fields, size_of
from brokerfl.wire.manifest import manifest_of
from brokerfl.wire.message import decode_header
from brokerfl.wire.payload import INLINE, EncodedContent, MissingChunkError, Payload
from brokerfl.wire.record import frozen
from brokerfl.wire.run import Run

#: How often a message may kill its node before it is answered with Error 8.
MAX_CRASHES = 3

#: Most bytes of the content of a dead message that are kept, for whoever looks for the reason.
MOST_KEPT = 256 * 1024**2


#: How often a message waits for its content: its run rings for as long as it says that Redis has all of it.
MOST_LACKED = 10

#: Of so many messages that is counted.
_REMEMBERED = 1000


class LackingContent(Exception):  # noqa: N818  (it says what is so)
    """A part of a message's content is gone from Redis; its ServerApp may have it."""


class Executor:
    """Has messages executed, and keeps the books. Safe to share between workers that serve different runs.

    Args:
        runner: executes.
        journal: what was executed, and the states.
        payloads: fetches and uploads large contents.
        wanted: says whether a message is still wanted.
        max_crashes: how often a message may kill the node before it is answered with Error 8.

    Attributes:
        activity: what is being executed.
    """

    def __init__(
        self, runner: Runner, journal: Journal, payloads: Payloads, wanted: Wanted, max_crashes: int = MAX_CRASHES
    ) -> None:
        self.activity = Activity()
        self._runner = runner
        self._journal = journal
        self._payloads = payloads
        self._wanted = wanted
        self._max_crashes = max_crashes
        self._lacked: OrderedDict[str, int] = OrderedDict()
        self._guard = payloads.guard
        self._runs = Runs(runner.called, runner.origin, payloads.guard)

    def keep_only(self, frames: dict[int, bytes]) -> None:
        """Serve these runs: add new ones, forget those that are over, and their states later."""
        for run_id in self._runs.keep_only(frames):
            self._payloads.forget(run_id)
        self._runner.keep_only(frames)
        self._journal.keep_only(frames)
        self._runner.site.keep_only(frames)

    def tidy(self) -> None:
        """Give up what is kept for runs that are over. Call it now and then, in any thread.

        Raises:
            RedisUnreachable: Redis is unreachable.
            JournalError: the journal cannot be written.
        """
        self._journal.tidy(self._wanted.ended_among(self._journal.absent()))

    def start_afresh(self, identity: bytes) -> bool:
        """Open the journal of another Redis data set, and forget everything else.

        Args:
            identity: the identity of the data set.

        Returns:
            Whether the journal has other data sets, but not this one.

        Raises:
            JournalError: it cannot be opened.
        """
        is_strange = self._journal.open(identity)
        self._guard.data_set = identity
        self._runs.clear()
        self._runner.clear()
        self._payloads.clear()
        return is_strange

    @property
    def is_full(self) -> bool:
        """Whether a large reply waits for room in a full Redis."""
        return self._payloads.is_full

    @property
    def aside(self) -> Aside:
        """What the node has set aside."""
        return self._journal.aside

    def free_disk(self) -> int:
        """Return the free bytes of the journal's disk; 0 if it is in memory."""
        return self._journal.free()

    # One message.

    def has_answered(self, work: Work) -> bool:
        """Return whether a message was executed."""
        return self._journal.has_answered(work.run_id, work.message_id)

    def execute(self, work: Work, worker: int, commit: Callable[[], None]) -> Fields | None:
        """Return the reply to one message as it is published, whatever happens; None if it expired or is not wanted.

        Sets ``work.answer`` and ``work.receipt`` to what the journal and the audit file have to have before the reply
        is published.

        Args:
            work: the message. No other worker executes a message of its run.
            worker: the number of the worker, for the record of what is being executed.
            commit: notes in the journal what was executed, so that a state that is loaded includes it.

        Raises:
            RedisUnreachable: the node is stopping and a large reply could not be uploaded: the message stays open.
            InterruptedExecution: the app raised, and the node is stopping: the message stays open.
            LackingContent: a part of its content is gone from Redis: the message stays open.
            Withheld: the site has not let it in: the message stays open.
            JournalError: the state cannot be loaded.
        """
        work.receipt = None
        reply = self._reply(work, worker, commit)
        if reply is None:
            return None
        if work.receipt is None:
            self._receipt(work, reply, None)
        return self._guard.protected(work.run_id, work.message_id, reply)

    def _receipt(self, work: Work, reply: Fields, content: Fields | None) -> None:
        if self._runner.site.audits:
            run = self._runs.get(work.run_id)
            work.receipt = self._runner.site.receipt(self._runner.node_id, run, work.fields, reply, content)

    def _reply(self, work: Work, worker: int, commit: Callable[[], None]) -> Fields | None:
        answered = self._journal.reply_to(work.run_id, work.message_id)
        if answered is not None and self._guard.knows(work.run_id):
            return self._repeat(work, dict(answered))
        try:
            metadata, _ = decode_header(work.fields)
            run = self._runs.get(work.run_id)
            if run is not None:
                self._guard.check(work.run_id, work.message_id, metadata, work.fields)
            if self._wanted.expire(work, metadata.ttl):
                return None
            if run is None:
                return self._refuse(work, ErrorCode.MESSAGE_UNAVAILABLE, self._runs.problem(work.run_id))
            refusal = self._runs.refusal(run)
            if refusal is not None:
                return self._refuse(work, ErrorCode.LOAD_CLIENT_APP_EXCEPTION, refusal)
            if self._runner.site.has_gate:
                left = self._wanted.left(work, metadata.ttl)
                self._runner.site.admit(run, work.message_id, metadata.message_type, left)
            state = None if self._runner.has_state_of(work.run_id) else self._load_state(work.run_id, commit)
            watch = self._wanted.watch(work)
            self.activity.begin(worker, Execution(work, metadata, watch))
            crashes = self._journal.begin(work.run_id, work.message_id, worker)
            try:  # a payload that is too large for this machine also kills the node
                if crashes >= self._max_crashes:
                    return self._set_aside(work, metadata, crashes)
                result = self._run(work, metadata, run, state, watch)
                if result is not None:
                    tells = not result.error or self._guard.tells(work.run_id)
                    self.activity.answered(worker, result.error if tells else "sealed")
            finally:
                self._journal.forgive(worker)  # from here on the app is not to blame if the node is killed
        except FrameError as error:
            log(WARNING, "A message of run %s cannot be read: %s", work.run_id, shown(str(error)))
            reason = f"{self._runner.called} cannot read the message: {error}"
            return self._refuse(work, ErrorCode.MESSAGE_UNAVAILABLE, reason)
        except Denied as denial:
            return self._refuse(work, ErrorCode.MOD_FAILED_PRECONDITION, f"{self._runner.called}: {denial}")
        except NoStateError:  # its run was over in the meantime, perhaps only for a moment
            return self._reply(work, worker, commit)
        return None if result is None else self._finish(work, metadata.group_id, result)

    def _load_state(self, run_id: int, commit: Callable[[], None]) -> Fields:
        commit()
        return {**(self._journal.state_of(run_id) or {})}

    def _run(self, work: Work, metadata: Metadata, run: Run, state: Fields | None, watch: Watch) -> Result | None:
        """Return the runner's result for a message; None if it is no longer wanted."""
        content = self._fetch(work, metadata.group_id)
        if content is None:
            return None
        if self._runner.site.has_gate:
            left = self._wanted.left(work, metadata.ttl)
            self._runner.site.admit_content(run, work.message_id, metadata, content, left)
        started = time.monotonic()
        trace("executing", "Executing a %s message of group %r", metadata.message_type, metadata.group_id)
        try:
            result = self._runner.run(Task(run, work.message_id, metadata, content, state, watch.is_cancelled))
            trace("executed", "Executed in %.3f s", time.monotonic() - started)
            return result
        finally:
            watch.end()
            if work.is_lost:  # the state came from a journal that is no longer open
                self._runner.drop(work.run_id)

    def _set_aside(self, work: Work, metadata: Metadata, crashes: int) -> Fields:
        log(ERROR, "Message %s killed this node %s times; it is set aside (brokerfl dead)", work.message_id, crashes)
        reason = f"the message killed {self._runner.called} {crashes} times; the node has set it aside"
        reply = self._refuse(work, ErrorCode.CLIENT_APP_CRASHED, reason)
        manifest, content = manifest_of(work.fields, self._payloads.limit), None
        with suppress(FrameError, LackingContent):
            if manifest is None:
                content = self._guard.contents(work.run_id).opened(work.fields)
            elif manifest.size <= MOST_KEPT:
                content = self._fetch(work, metadata.group_id)
        self._journal.set_aside(work.run_id, work.message_id, {**work.fields, **(content or {})}, crashes)
        work.answer = Answer(work.run_id, work.message_id, reply)
        return reply

    def _finish(self, work: Work, group_id: str, result: Result) -> Fields | None:
        """Return the reply as it is published; the app may keep using memory that it shares with it.

        None if it is no longer wanted; then nothing of it remains.
        """
        if result.content:
            self._receipt(work, result.head, result.content)
        content = EncodedContent(result.content, cipher=self._guard.replies(work.run_id))
        fields: Fields | None = content.fields
        if content.payload is not None:
            fields = None
            try:
                fields = self._upload(work, group_id, content.payload)
            finally:
                if fields is None:
                    self._runner.drop(work.run_id)
        if fields is None:
            return None
        reply, state = {**result.head, **fields}, result.state
        is_shared = state is not None and size_of(state) > INLINE  # too much to copy
        if state is not None and not is_shared:
            state = frozen(state)
        work.answer = Answer(work.run_id, work.message_id, reply, state, is_shared)
        return reply

    def _repeat(self, work: Work, reply: Fields) -> Fields | None:
        """Return the reply that the journal has; None if its payload is gone and it is no longer wanted."""
        trace("repeated", "Executed before; its reply is published again")
        called = self._runner.called
        try:
            manifest = manifest_of(reply)
            if manifest is None or self._payloads.has_uploaded(work.run_id, manifest):
                return reply
            payload = self._payloads.held(work.run_id, work.message_id)
            if payload is None:
                reason = f"{called} answered, but the content of its reply is gone from Redis"
                return self._refuse(work, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)
            uploaded = self._upload(work, decode_header(reply)[0].group_id, payload)
        except FrameError as error:  # another version made it
            reason = f"{called} cannot read the reply that it keeps: {error}"
            return self._refuse(work, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)
        if uploaded is None:
            return None
        again = {**reply, **uploaded}
        work.answer = Answer(work.run_id, work.message_id, again)
        return again

    def _refuse(self, work: Work, code: int, reason: str) -> Fields:
        trace("refused", "Answered with Error %s: %s", int(code), reason)
        return encode_refusal(self._runner.node_id, work.run_id, work.message_id, code, reason)

    # Contents.

    def _fetch(self, work: Work, group_id: str) -> Fields | None:
        """Return the content of a message; None if it is no longer wanted.

        Raises:
            FrameError: it cannot be read.
            LackingContent: a part of it is gone.
            RedisUnreachable: Redis is unreachable.
        """
        self._payloads.moves_on(work.run_id, group_id)
        try:
            return self._content(work)
        except MissingChunkError:
            if not self._wanted.is_wanted(work):
                return None  # it was answered or taken back, or Redis forgot it and it will come again
        try:
            return self._content(work)  # which may be another one now: Redis had lost the first
        except MissingChunkError as error:
            lacked = self._lacked[work.message_id] = self._lacked.pop(work.message_id, 0) + 1
            if lacked > MOST_LACKED:
                raise FrameError(str(error)) from None
            if len(self._lacked) > _REMEMBERED:
                self._lacked.popitem(last=False)
            raise LackingContent(str(error)) from None

    def _content(self, work: Work) -> Fields:
        manifest = manifest_of(work.fields, self._payloads.limit)
        if manifest is None:
            return self._guard.contents(work.run_id).opened(work.fields)
        return self._payloads.fetch(work.run_id, manifest)

    def _upload(self, work: Work, group_id: str, payload: Payload) -> Fields | None:
        """Return what the reply carries of its content; None if it is no longer wanted."""
        if work.receipt is not None:  # the content leaves before the reply
            self._runner.site.account([work.receipt])
        manifest = self._payloads.upload(
            work.run_id, work.message_id, group_id, payload, lambda: self._wanted.is_wanted(work)
        )
        return None if manifest is None else {MANIFEST: manifest.encoded}
