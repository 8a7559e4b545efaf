"""The hold: what this process holds of its run, from its creation or resume until it is ended or detached.

Owns how the parts of a ServerApp's side are put together, the heartbeat, and how a run ends or is detached. It must not
know which calls an app makes; the Driver does.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from logging import DEBUG
from typing import TypedDict

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.books import is_ending, read_books
from brokerfl.broker.connection import Connection
from brokerfl.broker.context import SavedContext
from brokerfl.broker.ending import Footprint
from brokerfl.broker.fence import RedisForgot, Transaction
from brokerfl.broker.heartbeat import Heartbeat
from brokerfl.broker.keys import LEASE, OFFLINE_GRACE, RETENTION
from brokerfl.broker.liveness import Liveness
from brokerfl.broker.outbox import Outboxes
from brokerfl.broker.owner import Owner, create_run, resume_run
from brokerfl.broker.patience import STEP, within
from brokerfl.broker.runs import has_ended
from brokerfl.broker.steps import SavedSteps
from brokerfl.broker.transactions import Transactions
from brokerfl.common import (
    SUPERLINK_NODE_ID,
    BrokerflError,
    Context,
    RedisOutOfMemory,
    RunError,
    RunStopped,
    UserConfig,
    log,
)
from brokerfl.common.log_context import log_context
from brokerfl.common.logger import is_tracing
from brokerfl.common.shared_log import SharedLog
from brokerfl.server.announcer import Announcer
from brokerfl.server.book import Book, Event
from brokerfl.server.book.kept import Kept
from brokerfl.server.commit import Committer
from brokerfl.server.outcome import Outcome
from brokerfl.server.progress import Progress
from brokerfl.server.push import Pusher
from brokerfl.server.receive import Receiver
from brokerfl.server.reconcile import Reconciler
from brokerfl.server.record import Record
from brokerfl.server.replies import Replies
from brokerfl.server.report import Report
from brokerfl.server.requests import Requests
from brokerfl.server.results import Results
from brokerfl.server.session import OUTAGE_LIMIT, Session
from brokerfl.server.shortage import Shortage
from brokerfl.server.steps import trace_step
from brokerfl.server.upload import Uploader
from brokerfl.server.verdict import Verdicts
from brokerfl.server.wait import Waits
from brokerfl.wire.frame import MAX_MESSAGE_BYTES
from brokerfl.wire.guard import UNPROTECTED, Protection
from brokerfl.wire.origin import Origin
from brokerfl.wire.status import encode_status

#: Seconds between two looks at what the run waits for.
_TICK = 1.0


class Options(TypedDict, total=False):
    """Settings by name, as a Driver takes them."""

    lease: float
    retention: float
    offline_grace: float
    outage_limit: float
    max_message: int
    max_run: int | None
    origin: Origin | None
    overrides: tuple[str, ...] | None
    round_timeout: float | None
    wait_replicas: int
    events: bool
    log: SharedLog | None
    name: str | None
    protection: Protection


@dataclass(frozen=True)
class Settings:
    """How a run is held: times in seconds, sizes in bytes, and whose it is."""

    lease: float = LEASE  # a ServerApp that is silent for longer counts as detached
    retention: float = RETENTION  # how long a detached run keeps its messages; at most 30 days
    offline_grace: float = OFFLINE_GRACE  # how long a named node may be offline before its open messages become Error 5
    outage_limit: float = OUTAGE_LIMIT  # how long Redis may be unreachable before the run detaches
    max_message: int = MAX_MESSAGE_BYTES  # the largest reply that is accepted
    max_run: int | None = None  # the most broadcast content that the run may have in Redis at once
    round_timeout: float | None = None  # how long `replies` and `send_and_receive` wait if the app does not say
    wait_replicas: int = 0  # how many replicas are to have a transaction before the app goes on
    events: bool = True  # note what happens in the run, for whoever looks later
    log: SharedLog | None = None  # lines of this process's log that go to Redis with its events
    origin: Origin | None = None  # where the ServerApp comes from; None for a script's, which nodes of any app serve
    overrides: tuple[str, ...] | None = None  # of a new run: the keys of its config that are no defaults; None for all
    name: str | None = None  # what the user calls the run; None for nothing, and for the name that a resumed run has
    protection: Protection = UNPROTECTED  # who signs the run, and whether it is sealed


class Hold:
    """One run that this process, its ``owner``, holds."""

    def __init__(self, owner: Owner, settings: Settings) -> None:
        self.run, self.owner = owner.run, owner
        connection, run_id = owner.connection, owner.run.run_id
        if settings.wait_replicas:
            owner.fence.await_replicas(settings.wait_replicas)
        saved = SavedContext(connection, run_id, settings.retention, owner.guard)
        steps = SavedSteps(connection, run_id, settings.retention, owner.guard)
        self.blobs = blobs = Blobs(connection, run_id, settings.retention, settings.max_run)
        try:
            snapshot = read_books(connection, run_id)
            state, state_key = saved.load()
            steps.load()
            if not state:  # an app that keeps nothing begins at its start, and so do its groups
                snapshot = replace(snapshot, groups=())
            blobs.load()
            identity = owner.read_identity() or b""
        except BaseException:
            owner.detach(Footprint())
            raise
        self.context = Context(
            run_id, SUPERLINK_NODE_ID, {}, state, dict(owner.run.run_config), lambda: self.session.is_over
        )
        outboxes = Outboxes(connection, run_id)
        transactions = Transactions(owner, saved, steps, blobs)
        self.progress = progress = Progress()
        self.book = book = Book(snapshot, Kept(state_key, steps.recorded), self._count, connection.clock)
        receiver = Receiver(outboxes, book)
        liveness = Liveness(settings.offline_grace, settings.lease)
        reconciler = Reconciler(transactions, book, receiver, blobs, identity)
        self.session = session = Session(transactions, receiver, liveness, reconciler, settings.outage_limit)
        session.diary.log = settings.log
        self.shortage = Shortage(connection, run_id, book.contacts.all, book.owing)
        session.on_full = self.shortage.met
        uploader = Uploader(session, blobs)
        self.committer = Committer(session, book, receiver, uploader, self.context)
        self.pusher = Pusher(session, book, self.committer, uploader, progress)
        self.record = Record(session, steps, book, uploader, progress)
        self.results = Results(session, self.record, book)
        self.verdicts = Verdicts(book, session, receiver, liveness, blobs)
        self.waits = Waits(book, session, receiver, self.verdicts, progress)
        self.outcome = Outcome(session.names.of)
        self.replies = Replies(session, self.waits, self.committer, self.outcome, settings.max_message)
        self.report = Report(session, book, progress, self.outcome, blobs)
        self._is_closed = False
        self._requests = Requests(session, book, progress, self.verdicts)
        progress.rung = self._requests.look
        announcer = Announcer(progress, self.report, session)
        self._ticks = Heartbeat(f"waits of run {run_id}", _TICK, announcer.tick, _give_up_saying)
        self._ticks.start()
        interval = min(settings.lease / 3, settings.retention / 4)
        with log_context(run=run_id):
            self._heartbeat = Heartbeat(f"heartbeat of run {run_id}", interval, self._renew, self.waits.end)
        self._heartbeat.start()

    def _count(self, event: Event) -> None:
        self.progress.note(event)
        if is_tracing():
            trace_step(self.run.run_id, event)

    def take_up(self) -> None:
        """Look up what Redis has of a resumed run; detach from it if that fails."""
        try:
            self.session.through_outage(lambda: self.owner.renew_lifetimes(self.footprint()))
            self.session.take_up()
            self._requests.look()
            if self.owner.has_new_frame:
                with suppress(RedisOutOfMemory):  # then its nodes go by what they were told before
                    self.session.transact(lambda: self.session.transactions.announce(self.book.contacts.all()))
        except BaseException:
            self.detach()
            raise

    def _renew(self) -> None:
        try:
            try:
                self.owner.renew(self.footprint, encode_status(self.report.status()))
                self.session.is_up()
                self.session.when_quiet(self.blobs.release)
                self.session.when_quiet(self.session.diary.write)
                self.session.is_short = self.shortage.look()
                self._requests.look()
            except RedisForgot:
                self.session.reconcile(always=True)
        except RunError:
            self.owner.detach(self.footprint())  # a stop waits for the lease
            raise
        except RedisForgot:
            return  # forgotten twice: the next beat tries again

    def tell(self) -> None:
        """Say now what the run is doing, before the next heartbeat does."""
        self.session.through_outage(lambda: self.owner.renew(self.footprint, encode_status(self.report.status())))

    def footprint(self) -> Footprint:
        """Return what the run may have in Redis outside its own slot."""
        return Footprint(self.book.contacts.all(), self.blobs.chunks())

    def end(self) -> None:
        """End the run: all its keys are deleted."""
        self._heartbeat.stop()
        self._ticks.stop(0)
        if self._is_closed:
            return
        self.session.check()
        footprint, is_closed = self.footprint(), partial(is_ending, self.owner.connection, self.run.run_id)
        with self.session.writing:  # so that no other thread compares in between
            self.session.diary.moves_on()
            close = partial(self.session.transactions.close, footprint, self.session.diary.pages())
            self.session.transact(close, is_closed, frees=True)
            self._delete(footprint)
            self.owner.fence.close()
            self._is_closed = True
        self.waits.end(RunStopped(f"run {self.run.run_id} has ended"))

    def _delete(self, footprint: Footprint) -> None:
        """Delete what is left of the run, which is closed; so does whoever finds it like that."""
        transactions, is_deleted = self.session.transactions, partial(has_ended, self.owner.connection, self.run.run_id)
        again = partial(transactions.close_again, footprint)
        remains = self.session.through_outage(transactions.read_remains)
        with suppress(RunError):
            while not self._try_to_delete(partial(transactions.delete, remains), again, is_deleted):
                continue
        if self.session.is_stale and self.session.through_outage(is_deleted):
            transactions.clear(footprint)

    def _try_to_delete(
        self, delete: Callable[[], Transaction], again: Callable[[], Transaction], is_deleted: Callable[[], bool]
    ) -> bool:
        """Return whether Redis has the deletion for good; it may forget that it was executed."""
        answers = self.session.transact(delete, is_deleted, frees=True, instead=again)
        if answers and isinstance(answers[0], Exception):
            self.session.through_outage(self.session.transactions.bury)
        elif not self.session.through_outage(is_deleted):
            return False
        return not self.session.is_stale

    def abandon(self) -> None:
        """From now on, every wait in any thread raises RunStopped. Call `detach` next."""
        self.waits.end(RunStopped(f"this process has detached from run {self.run.run_id}"))

    def detach(self) -> None:
        """Detach from the run without ending it: its keys stay for the retention time. Redis may be unreachable."""
        self._is_closed = True
        self._ticks.stop(0)
        self.abandon()  # first, so that nothing, the heartbeat included, waits for a Redis that does not answer
        if self._heartbeat.stop(STEP):
            with suppress(BrokerflError):  # the lease lapses by itself
                within(time.monotonic(), self._give_up)

    def _give_up(self) -> None:
        self.owner.connection.reset()
        self.session.diary.left()
        self.owner.detach(self.footprint(), self.session.diary.pages(), self.session.diary.lines())


def _give_up_saying(error: Exception) -> None:
    log(DEBUG, "Nothing more is said of what the run waits for: %r", error)


def create(connection: Connection, app: str, run_config: UserConfig, settings: Settings) -> Hold:
    """Create a run and hold it; arguments and errors are those of `create_run`."""
    owner = create_run(
        connection,
        app,
        run_config,
        lease=settings.lease,
        retention=settings.retention,
        origin=settings.origin,
        events=settings.events,
        overrides=settings.overrides,
        name=settings.name or "",
        protection=settings.protection,
    )
    return Hold(owner, settings)


def take_over(
    connection: Connection, run_id: int, app: str, run_config: UserConfig | None, settings: Settings, *, takeover: bool
) -> Hold:
    """Resume a run and hold it; arguments and errors are those of `resume_run`."""
    owner = resume_run(
        connection,
        run_id,
        run_config,
        app=app,
        takeover=takeover,
        lease=settings.lease,
        retention=settings.retention,
        origin=settings.origin,
        events=settings.events,
        name=settings.name,
        protection=settings.protection,
    )
    hold = Hold(owner, settings)
    hold.take_up()
    return hold
