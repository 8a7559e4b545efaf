"""The steps of a strategy's loop: recorded as they are taken, and gone through again by a resumed app.

Owns when the app is gone through and when it is live, and what a record has. It must not know how a strategy is made to
call this (`hooks`), or how a record reaches Redis (`brokerfl.server.record`).

A step is a call of a hook: ``configure_train``, ``aggregate_train`` and so on. A snapshot is taken before each
configure hook; the first push after it commits it. A resumed app calls the same hooks again. Those that the record has
are not executed: a configure hook gives no messages, and others give what they gave. At the hook whose snapshot was
committed everything is put back, and the app is live. What it then pushes adopts what it pushed before, by position.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from logging import INFO, WARNING
from typing import Any

from brokerfl.broker.steps import Recorded
from brokerfl.common import MessageTooLarge, RunDiverged, log
from brokerfl.flower import compat
from brokerfl.flower.keeper import Keeper, Kept
from brokerfl.flower.loop import Loop
from brokerfl.flower.models import Models, form_of, is_model
from brokerfl.flower.places import in_place
from brokerfl.flower.records import record_dict_of
from brokerfl.flower.snapshot import NODES, Snapshot, random_states, restore_random
from brokerfl.flower.story import END, START, Story, place_in_words
from brokerfl.flower.values import RecordTypeError, decode, encode
from brokerfl.server import Driver
from brokerfl.server.book.orphans import Match
from brokerfl.server.record import Stage
from brokerfl.wire.steps import tree_and_arrays, value_names

#: Most node lists of one configure hook that are recorded: the first and the last half of them. A strategy that waits
#: for nodes asks once a second.
_MOST_LISTS = 16

#: Most values that cannot be recorded that one warning names.
_MOST_NAMED = 10

_PLACE = "at:"


class Steps:
    """The steps of one run's loops. For the thread of the loop, except for `stage`.

    Args:
        driver: the run's.
        context: flwr's.
        save_state: lets the next commit save what ``context.state`` holds now.

    Attributes:
        loop: the loop that the app is in; None outside.
        is_live: the app is at a step that the record does not have.
    """

    def __init__(self, driver: Driver, context: Any, save_state: Callable[[], None]) -> None:
        self.loop: Loop | None = None
        self._run_id = driver.run.run_id
        self._driver, self._record = driver, driver.record
        self._context, self._save_state = context, save_state
        self._story = Story(self._run_id, self._record.fields)
        self._keeper = Keeper(self._record)
        self._models = Models(self._record, self._keeper)
        self._is_hand_written = False
        self.is_live = self._story.head is None
        self._mark = self._story.head.sequence if self._story.head else 0
        self._snapshot: Snapshot | None = None
        self._is_given_up = False
        self._replayed: list[list[int]] | None = None  # node lists for the hook that is being called
        self._is_configuring = False

    def say_where(self) -> None:
        """Log where a resumed run goes on."""
        head, executed = self._story.head, self._record.executed
        if head is not None:
            count = "1 execution is" if executed == 1 else f"{executed} executions are"
            place = f"{'at' if head.hook == END else 'in'} {place_in_words(head.hook, head.round)}"
            log(INFO, "Run %s goes on %s; %s not repeated", self._run_id, place, count)

    # The loop.

    def begin(self, loop: Loop, initial: Any) -> Any:
        """A loop begins; return its first model, the recorded one if it is needed.

        Raises:
            RunDiverged: it is another loop than the one that was recorded.
        """
        self.loop = loop
        kind = type(loop.strategy)
        told = [f"{kind.__module__}.{kind.__qualname__}", form_of(initial)]
        if self.is_live:
            if not len(self._story):
                log(INFO, "Run %s is resumable: steps", self._run_id)
            loop.begun = self._note(START, 0, told, initial if isinstance(initial, compat.ArrayRecord) else None)
        else:
            step = self._story.recall(START, 0)
            loop.begun = step.number
            self._story.compare(step.value, told)
            if self._models.has(step.number):
                initial = self._models.recall(step.number)
        self._keeper.note_first(self._recordable(place for place in loop.places() if place.is_cell))
        return initial

    def end(self) -> None:
        """The loop returns."""
        try:
            if self.is_live:
                self._note(END, 0)
                self._take_snapshot(END, 0)
            else:
                self._story.recall(END, 0)
                if self._story.is_told and self._story.head is not None and self._story.head.hook == END:
                    self._revive()
        finally:
            self.loop = None

    def leave(self) -> None:
        """The loop raised."""
        self.loop = None

    # Hooks.

    def is_over(self, hook: str) -> bool:
        """Return whether a resumed app comes to a call of this hook that its record has, with all that followed it."""
        return not self.is_live and self._story.is_next(hook)

    def configure(self, hook: str, number: int, config: Any, call: Callable[[], Iterable[Any]]) -> Any:
        """Return the messages that a configure hook makes.

        If they were pushed in a former life and settled, these are none, or what stands for them.
        """
        assert self.loop is not None, "hooks are called in loops"
        name = hook.replace("configure_", "") + "_config"
        self.loop.configs[name] = config
        if not self.is_live:
            if not self._story.reaches(hook, number):
                self._story.recall(hook, number)
                is_aggregated = self._story.is_next(hook.replace("configure", "aggregate"))
                return self.loop.stand_ins(hook) if is_aggregated else []
            self._revive()
        else:
            self._replayed = []
            self._take_snapshot(hook, number)
        self._is_configuring = True
        try:
            messages = list(call())
        finally:
            self._is_configuring = False
        self._note(hook, number)
        if self.loop.is_legacy:
            self.commit()  # its messages are pushed by other threads
        return messages

    def aggregate(self, hook: str, number: int, call: Callable[[], Any]) -> Any:
        """Return the model and the metrics that an aggregate hook gives, or gave."""
        if not self.is_live:
            step = self._story.recall(hook, number)
            assert self.loop is not None, "hooks are called in loops"
            is_needed = step.gave_arrays and (self.loop.needs_all or self._models.has(step.number))
            return (self._models.recall(step.number) if is_needed else None), step.value
        given = call()
        if not (isinstance(given, tuple) and len(given) == 2 and is_model(given[0])):
            self.give_up(f"{hook} gave neither a model and metrics nor None")
            return given
        arrays, metrics = given
        self._note(hook, number, metrics, arrays)
        return given

    def measure(self, hook: str, number: int, call: Callable[[], Any]) -> Any:
        """Return what a hook gives, or gave, that gives no model."""
        if not self.is_live:
            return self._story.recall(hook, number).value
        given = call()
        self._note(hook, number, given)
        return given

    def _note(self, hook: str, number: int, value: Any = None, arrays: Any = None) -> int:
        try:
            step = self._story.note(hook, number, value, gave_arrays=arrays is not None)
        except RecordTypeError as error:
            self.give_up(f"{hook} gave {error}")
            return self._story.note(hook, number)
        if arrays is not None and self.loop is not None:
            self._models.note(step, arrays, self.loop.begun if hook != START else step, self.loop.is_flowers)
        return step

    # Nodes.

    @property
    def is_called_again(self) -> bool:
        """Whether the configure hook that is being called was called in a former life."""
        return bool(self._replayed)

    @property
    def is_configuring(self) -> bool:
        """Whether this thread is in a configure hook, and looks for nodes by itself."""
        return self._is_configuring and self._is_here() and self.loop is not None and not self.loop.is_legacy

    def _is_here(self) -> bool:
        return self.loop is not None and self.loop.thread == threading.get_ident()

    def node_ids(self, ask: Callable[[], list[int]]) -> list[int]:
        """Return the nodes as a configure hook is to see them: as they were when it was called first."""
        if self._replayed:
            return self._replayed.pop(0)
        found = ask()
        if self._snapshot is not None:
            lists = self._snapshot.node_lists
            lists.append(found)
            if len(lists) > _MOST_LISTS:
                del lists[_MOST_LISTS // 2]
        return found

    # Recording.

    def _take_snapshot(self, hook: str, number: int) -> None:
        if self._is_given_up:
            return
        try:
            values = {**self._models.kept(), **self._kept_values()}
            pages = self._story.pages()
        except (MessageTooLarge, ValueError) as error:
            self.give_up(str(error))
            return
        self._save_state()
        self._snapshot = Snapshot(number, hook, len(self._story), pages, values)
        self._record.settle(self._snapshot.contents)

    def _kept_values(self) -> dict[str, Kept]:
        assert self.loop is not None, "a snapshot is taken in a loop"
        values = {_PLACE + place.name: place.read() for place in self.loop.places()}
        values |= dict(self.loop.configs) | random_states()
        found, failed = {}, {}
        for name, value in values.items():
            try:
                kept = self._keeper.keep(name, value)
            except (RecordTypeError, RecursionError) as error:
                failed[name.removeprefix(_PLACE)] = str(error)
            else:
                if kept is not None:
                    found[name] = kept
        self._keeper.forget_all_but(found)
        self._tell(failed)
        return found

    def _tell(self, failed: dict[str, str]) -> None:
        assert self.loop is not None, "a snapshot is taken in a loop"
        new = {name: why for name, why in failed.items() if name not in self.loop.unrecorded}
        if new:
            self.loop.unrecorded |= new.keys()
            named = [f"{name} ({why})" for name, why in new.items()]
            rest = [f"and {len(named) - _MOST_NAMED} more"] if len(named) > _MOST_NAMED else []
            listed = ", ".join(named[:_MOST_NAMED] + rest)
            log(WARNING, "Run %s cannot record %s: after a resume it is as main makes it", self._run_id, listed)

    def _recordable(self, places: Iterable[Any]) -> Iterable[tuple[str, Any]]:
        for place in places:
            with suppress(RecordTypeError):
                encode(place.read())
                yield _PLACE + place.name, place.read()

    def give_up(self, reason: str) -> None:
        """From now on nothing is recorded, and what was recorded is deleted: it would soon lag behind the replies."""
        if self._is_given_up:
            return
        log(WARNING, "Run %s is not resumable by its steps, and would start over: %s", self._run_id, reason)
        self._is_given_up, self._snapshot = True, None
        self._record.settle(())
        self._driver.push_messages([], checkpoint=Stage(True, Recorded()))

    # Pushing.

    def commit(self) -> None:
        """Commit what there is to record, without messages."""
        stage = self.stage() if self.is_pending else None
        if stage is not None:
            self._driver.push_messages([], checkpoint=stage)
            self.pushed(stage)

    @property
    def is_pending(self) -> bool:
        """Whether there is something to record, and nothing was pushed since."""
        return self._snapshot is not None

    def stage(self) -> Stage | None:
        """Return what the next push is to this loop; None if it is a hand-written one's."""
        if self._is_given_up:
            return None
        if not self.is_live:
            return Stage(False, match=Match(after=float("inf")))
        if self._snapshot is None and self.loop is None:
            self._say_that_it_is_hand_written()
            return None
        if self._snapshot is None:
            return Stage(False, match=Match(after=self._mark))
        if self.loop is not None and not self._is_here():
            return Stage(False, match=Match(after=self._mark))
        mark = self._record.mark()
        return Stage(True, self._snapshot.recorded(mark), self._snapshot.uploads, Match(after=self._mark))

    def _say_that_it_is_hand_written(self) -> None:
        if not self._is_hand_written and not len(self._story):
            self._is_hand_written = True
            reason = "a hand-written loop keeps its progress in context.state"
            log(INFO, "Run %s is resumable: from the start; %s", self._run_id, reason)

    def pushed(self, stage: Stage | None) -> None:
        """The push succeeded."""
        if stage is None or stage.steps is None:
            return
        if self._snapshot is not None:
            self._story.written(self._snapshot.pages, self._snapshot.steps)
            self._snapshot = None
            self._record.keep(())
            head = self._record.head
            self._mark = head.sequence if head is not None else self._mark
            self._record.tell(head.round if head is not None else 0)

    # Resuming.

    def _revive(self) -> None:
        """Put everything back: from here on the app is live."""
        assert self.loop is not None, "an app goes on in a loop"
        assert self._story.head is not None, "there is a story"
        head, places, missing = self._story.head, self.loop.places(), []
        for name in value_names(self._record.fields):
            if name.startswith(_PLACE) and not places.put_back(name.removeprefix(_PLACE), self._value(name)):
                missing.append(name.removeprefix(_PLACE))
        for name, config in self.loop.configs.items():
            recorded = self._value(name)
            if recorded is not None:
                in_place(config, recorded)
        if missing:
            raise RunDiverged(
                f"run {self._run_id} cannot go on: its record has {missing[0]}, which this app does not have; resume "
                "it with the app that it was started with, or begin anew with --from-start"
            )
        compat.replace_records(self._context.state, record_dict_of(self._driver.context.state))
        self._replayed = self._value(NODES) or []
        self.is_live = True
        for state in ("random", "numpy", "torch"):
            restore_random(state, self._value(state))
        self._record.tell(head.round)

    def _value(self, name: str) -> Any:
        content = self._record.read(name)
        return None if content is None else decode(*tree_and_arrays(content))
