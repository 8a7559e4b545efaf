"""Any history: hypothesis composes pushes, replies, commits and accidents, many in one run, and shrinks what fails."""

from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from brokerfl.broker.ending import stop_run
from brokerfl.broker.keys import Keys
from brokerfl.common import ConfigsRecord, MetricsRecord, RunStopped
from brokerfl.server import Driver
from tests.apps import number
from tests.conftest import PREFIX
from tests.crash.world import Accident, Outcome, World, check_books, enter, payloads, virtual_time
from tests.stage import is_stale

pytestmark = pytest.mark.timeout(1800)


class Histories(RuleBasedStateMachine):
    """A ServerApp that keeps round, sum and whose replies it has in its state, and everything that may befall it.

    What the app knows beside its state is lost when it is killed, as in a process.
    """

    @initialize(are_chunked=st.booleans())
    def begin(self, are_chunked: bool = False) -> None:
        """Two nodes and a run, whose contents are small or chunked."""
        self.are_chunked = are_chunked
        self.sizes = ExitStack()
        self.sizes.enter_context(payloads(are_chunked))
        self.world = World(Accident())
        enter(self.world)
        self.world.register_nodes()
        self.nodes = self.world.node_ids
        self.is_forgetful = False
        self.driver = Driver(self.world.wire("server").connection, "app")
        self.run_id = self.driver.run.run_id
        self._take_up()

    def _take_up(self) -> None:
        """What a main function does first: read its state."""
        state = self.driver.context.state
        self.books: Any = state.metrics_records.setdefault("books", MetricsRecord({"round": 0, "sum": 0}))
        self.done: Any = state.configs_records.setdefault("done", ConfigsRecord({"nodes": []}))
        self.waiting: dict[str, int] | None = None

    def _value(self, node: int) -> int:
        return 7 ** (2 * int(self.books["round"]) % 16 + self.nodes.index(node))

    # The app.

    @precondition(lambda self: self.waiting is None)
    @rule()
    def push(self) -> None:
        """Push the round to every node that is not done with it."""
        group, open_nodes = str(self.books["round"]), [n for n in self.nodes if n not in self.done["nodes"]]
        self.driver.wait_for_nodes(2)
        ids = self.driver.push_messages(
            [self.driver.create_message(number(self._value(node)), "train", node, group) for node in open_nodes]
        )
        assert all(ids)
        self.waiting = dict(zip(ids, open_nodes, strict=True))

    @precondition(lambda self: self.waiting)
    @rule()
    def receive(self) -> None:
        """Wait for one reply, add it up; the last one ends the round."""
        assert self.waiting
        reply = next(iter(self.driver.replies(list(self.waiting))))
        assert reply.has_content(), reply.error
        node = self.waiting.pop(reply.metadata.reply_to_message)
        assert reply.content.metrics_records["m"]["n"] == 3 * self._value(node)
        self.books["sum"] += 3 * self._value(node)
        self.done["nodes"] = [*self.done["nodes"], node]
        if not self.waiting:
            assert sorted(self.done["nodes"]) == sorted(self.nodes)
            self.books["round"] += 1
            self.done["nodes"] = []
            self.waiting = None

    @rule()
    def checkpoint(self) -> None:
        """Commit what was received."""
        self.driver.checkpoint()

    @rule()
    def pull(self) -> None:
        """Look without taking anything; that also repairs a Redis that forgot."""
        while self.is_forgetful or self.driver.pull_messages([]):
            self.driver.pull_messages([])
            self.is_forgetful = is_stale(self.driver)
        for _ in range(5 if self.are_chunked else 0):  # what only a node remembers
            self.world.run_nodes()

    # What may happen.

    # Not when Redis has just been killed too: whoever remembers what it forgot must live to tell it.
    @precondition(lambda self: not self.is_forgetful)
    @rule()
    def kill_server(self) -> None:
        """kill -9 of the ServerApp, and a resume."""
        self._settle_down()
        for wire in self.world.wires:
            wire.dead = wire.dead or wire.name == "server"
        self.world.release(Keys(PREFIX).run_lease(self.run_id))
        self.driver = Driver(self.world.wire("server").connection, "app", resume=self.run_id)
        self._take_up()

    def _settle_down(self) -> None:
        """Chunks are in nobody's journal: what their owner sent is on Redis's disk before it is killed."""
        if self.are_chunked:
            self.world.shards.settle()

    @precondition(lambda self: not self.is_forgetful)
    @rule()
    def take_over(self) -> None:
        """Another ServerApp takes the run away; the former one may do nothing any more."""
        self._settle_down()
        former = self.driver
        self.driver = Driver(self.world.wire("server").connection, "app", resume=self.run_id, takeover=True)
        assert former.push_messages([former.create_message(number(1), "train", self.nodes[0], "x")]) == [""]
        self._take_up()

    @precondition(lambda self: not (self.is_forgetful and self.are_chunked))
    @rule(index=st.integers(0, 1))
    def kill_node(self, index: int) -> None:
        """kill -9 of a node, and a restart."""
        self._settle_down()
        process = self.world.nodes[index]
        process.wire.dead = True
        process.turn()

    @rule(index=st.integers(0, 1))
    def let_work(self, index: int) -> None:
        """A node has a turn."""
        self.world.nodes[index].turn()

    @rule()
    def cut(self) -> None:
        """Every connection breaks."""
        for wire in self.world.wires:
            wire.broken.update(wire.used)

    @rule(writes=st.integers(1, 12))
    def forget(self, writes: int) -> None:
        """Redis is killed and forgets its last writes."""
        self.world.forget(writes)
        self.cut()
        self.is_forgetful = True

    @rule()
    def wait(self) -> None:
        """Time goes by, and everybody may look around."""
        self.world.run_nodes()
        self.world.clock = min(self.world.clock + 1.5, 200.0)

    def teardown(self) -> None:
        """From any state the run comes to its right end."""
        if not hasattr(self, "world"):
            return
        with self.sizes:
            self._end()

    def _end(self) -> None:
        target = int(self.books["round"]) + 2
        while self.books["round"] < target:
            if self.waiting is None:
                self.push()
            else:
                self.receive()
        rounds = int(self.books["round"])
        expected = sum(3 * 7 ** (2 * r % 16 + index) for r in range(rounds) for index in range(2))
        assert self.books["sum"] == expected
        self.driver.end()
        self.world.finish()
        check_books(self.world, Outcome(run_id=self.run_id))


def play_histories(count: int, number: object, shrinks: bool) -> None:
    """Play ``count`` histories: those that belong to ``number``, the usual ones for None."""
    machine = Histories if number is None else seed(number)(type("Histories", (Histories,), {}))
    with virtual_time():
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=count,
                stateful_step_count=40,
                deadline=None,
                derandomize=number is None,
                database=None,
                phases=list(Phase) if shrinks else [Phase.generate],  # shrinking takes minutes
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_any_history_ends_right(part: tuple[int, int], request: pytest.FixtureRequest) -> None:
    """Pushes, replies, commits, kills, takeovers, cuts and forgetting in any order: the sum is right, no key left."""
    option = request.config.option
    index, slices = option.slice
    first, parts = part
    if option.chosen:
        play_histories(60, None, shrinks=False)
    play_histories(
        max(60, 2000 // slices // parts), f"{option.seed} {index}/{slices} {first}/{parts}", shrinks=not option.chosen
    )


def test_a_node_that_brought_a_forgotten_reply_again_may_die() -> None:
    """Redis forgets a large reply that the ServerApp has read, then its node dies, one after the other."""
    with virtual_time():
        history = Histories()
        history.begin(are_chunked=True)
        history.push()
        history.pull()
        history.pull()
        history.forget(writes=2)
        history.pull()
        history.kill_node(index=1)
        history.teardown()


def test_a_stop_in_any_state_deletes_everything() -> None:
    """A run that is stopped while replies are open ends with RunStopped, and no key is left."""
    with virtual_time():
        history = Histories()
        history.begin()
        history.push()
        stop_run(history.world.wire("operator").connection, history.run_id, patience=0.1)
        with pytest.raises(RunStopped):
            history.receive()
        history.world.finish()
        check_books(history.world, Outcome(run_id=history.run_id))
