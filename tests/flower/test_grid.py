"""What Flower's strategies and apps lean on, of the Grid, of messages, errors and states."""

import gc
import math
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from brokerfl.broker.ending import stop_run
from brokerfl.broker.nodes import Registration
from brokerfl.common import ErrorCode, RunStopped
from brokerfl.flower import adapt_server_app
from brokerfl.flower import grid as grid_module
from brokerfl.server import Driver
from brokerfl.testing import FakeServer, Federation, fake_connection, run_simulation
from brokerfl.wire.manifest import CHUNK
from brokerfl.wire.payload import Payload
from brokerfl.wire.record import encode_content
from tests.apps import Clock, eventually
from tests.flower.names import (
    HAS_MESSAGE_API,
    ClientApp,
    ConfigRecord,
    Error,
    Grid,
    Message,
    MetricRecord,
    NumPyClient,
    RecordDict,
    ServerApp,
    ServerAppComponents,
    ServerConfig,
    arrays_of,
    legacy,
    message_to,
    ndarrays_in,
    ndarrays_to_parameters,
    put_record,
    record_in,
    record_set_of,
    records_in,
    records_of,
    replied_to,
    reply_to,
)
from tests.stage import driver_of, taken, unsettled

Answer = Callable[[Any, Any], Any]


def client(answer: Answer) -> Any:
    """A ClientApp that replies to queries with what ``answer`` makes of message and context."""
    app = ClientApp()

    @app.query()
    def query(message: Any, context: Any) -> Any:
        return reply_to(message, answer(message, context))

    return app


def server(main: Callable[[Any, Any], None]) -> Any:
    """A ServerApp with this main function."""
    app = ServerApp()
    app.main()(main)
    return app


def echo(message: Any, context: Any) -> Any:
    """What it was sent."""
    return message.content


def number(value: int) -> Any:
    """Records that hold one number."""
    return records_of({"m": MetricRecord({"n": value})})


def number_in(message: Any) -> int:
    """What `number` put there."""
    return int(record_in(message.content, "m")["n"])


def run(main: Callable[[Any, Any], None], answer: Answer = echo, nodes: int = 1, **options: Any) -> Any:
    """Run a ServerApp's main function on nodes; return its context."""
    return run_simulation(server(main), client(answer), nodes, **options).context


def pulled(grid: Any, ids: Any) -> list[Any]:
    """The replies to all of these messages."""
    replies: list[Any] = []

    def all_are_here() -> bool:
        replies.extend(grid.pull_messages(ids))
        return len(replies) >= len(ids)

    eventually(all_are_here, within=30)
    return replies


class Gate:
    """Nodes that wait: each call tells that it has begun, and goes on when ``go`` is set."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, message: Any, context: Any) -> Any:
        self.begun.release()
        assert self.go.wait(20)
        return message.content


# Messages and their metadata.


def test_metadata() -> None:
    """A message arrives with all that the ServerApp said of it, and its reply names both sides and the message."""
    arrived: list[Any] = []

    def answer(message: Any, context: Any) -> Any:
        arrived.append((message.metadata, context))
        return message.content

    def main(grid: Any, context: Any) -> None:
        assert isinstance(grid, Grid)
        [node] = grid.get_node_ids()
        message = message_to(grid, node, number(1), "query", group="7", ttl=600.0)
        created_at = message.metadata.created_at
        [message_id] = grid.push_messages([message])
        assert message.metadata.message_id == message_id != ""
        [reply] = pulled(grid, [message_id])
        [(there, node_context)] = arrived
        assert (there.message_id, there.created_at, there.ttl) == (message_id, created_at, 600.0)
        back = reply.metadata
        assert replied_to(reply) == message_id
        assert (back.src_node_id, back.dst_node_id) == (there.dst_node_id, there.src_node_id) == (node, context.node_id)
        assert there.src_node_id == message.metadata.src_node_id
        for metadata in (message.metadata, there, back):
            assert (metadata.run_id, metadata.group_id, metadata.message_type) == (context.run_id, "7", "query")
        assert 0 < back.ttl <= 600.0
        assert (node_context.run_id, node_context.node_id) == (context.run_id, node)
        assert node_context.node_config == {"partition-id": 0, "num-partitions": 1}
        assert node_context.run_config == context.run_config == {"lr": 0.5, "on": True}
        assert (grid.run.run_id, grid.run.override_config) == (context.run_id, context.run_config)

    run(main, answer, run_config={"lr": 0.5, "on": True})
    assert arrived


def test_what_is_no_message_is_refused() -> None:
    """Something that is no Message of flwr is a TypeError, and nothing of its batch is pushed."""
    served: list[Any] = []

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        message = message_to(grid, node, number(1))
        with pytest.raises(TypeError, match="expected flwr's Message, not dict"):
            grid.push_messages([message, {}])
        grid.send_and_receive([message])

    run(main, lambda message, context: served.append(message) or message.content)
    assert len(served) == 1


def test_content_is_frozen_when_it_is_pushed() -> None:
    """What a strategy does with its config and records after a push does not reach the nodes."""
    gate, answers = Gate(), []

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        config = ConfigRecord({"round": 1, "list": [1]})
        shared = records_of({"config": config, "arrays": arrays_of(np.zeros(2))})
        ids = []
        for turn in (1, 2, 3):
            config["round"] = turn
            ids += grid.push_messages([message_to(grid, node, shared)])
        config["round"], config["new"] = 99, "added"
        config["list"].append(2)
        record_in(shared, "arrays")["0"] = arrays_of(np.ones(2))["0"]
        gate.go.set()
        replies = {replied_to(reply): reply for reply in pulled(grid, ids)}
        answers.extend(replies[message_id].content for message_id in ids)

    run(main, gate)
    assert [dict(record_in(content, "config")) for content in answers] == [{"round": n, "list": [1]} for n in (1, 2, 3)]
    for content in answers:
        np.testing.assert_array_equal(ndarrays_in(record_in(content, "arrays"))[0], np.zeros(2))


def test_a_reply_is_pulled_once() -> None:
    """A reply that is not there yet is no reply, and no Error; one that was pulled does not come again."""
    gate = Gate()

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        ids = grid.push_messages([message_to(grid, node, number(n)) for n in (1, 2)])
        assert list(grid.pull_messages(ids)) == []
        gate.go.set()
        assert {replied_to(reply) for reply in pulled(grid, ids)} == set(ids)
        assert list(grid.pull_messages(ids)) == []
        [unknown] = grid.pull_messages(["unknown"])
        assert (unknown.error.code, replied_to(unknown)) == (ErrorCode.MESSAGE_UNAVAILABLE, "unknown")

    run(main, gate)


def test_a_timeout_returns_what_came() -> None:
    """send_and_receive with a timeout returns the replies that came in it; the rest can be pulled by their ids."""
    go = threading.Event()

    def answer(message: Any, context: Any) -> Any:
        assert number_in(message) or go.wait(20)
        return message.content

    def main(grid: Any, context: Any) -> None:
        slow, fast = grid.get_node_ids()
        batch = [message_to(grid, slow, number(0)), message_to(grid, fast, number(1))]
        replies = list(grid.send_and_receive(batch, timeout=1.0))
        assert [reply.metadata.src_node_id for reply in replies] == [fast]
        go.set()
        [late] = pulled(grid, [batch[0].metadata.message_id])
        assert late.metadata.src_node_id == slow

    run(main, answer, nodes=2)


def test_replies_have_one_order() -> None:
    """Replies come by node and by their place in the batch, although the nodes answer the other way round."""
    drivers: list[Driver] = []

    def answer(message: Any, context: Any) -> Any:
        before_it = number_in(message)
        eventually(lambda: taken(drivers[0]) >= before_it, within=30)
        return message.content

    def main(grid: Any, context: Any) -> None:
        drivers.append(driver_of(grid))
        low, middle, high = grid.get_node_ids()
        batch = [message_to(grid, node, number(n)) for n, node in enumerate((high, high, middle, low))]
        batch.append(message_to(grid, max(high + 1, 2), number(0)))
        *replies, refused = grid.send_and_receive(batch)
        assert [number_in(reply) for reply in replies] == [3, 2, 0, 1]
        assert refused.has_error()

    run(main, answer, nodes=3)


def test_many_threads_on_one_grid() -> None:
    """Threads that send and receive on one Grid at once get their own replies, and no other thread's."""

    def main(grid: Any, context: Any) -> None:
        nodes = list(grid.get_node_ids())
        ready = threading.Barrier(16)

        def ask(thread: int) -> list[tuple[int, int]]:
            ready.wait(20)
            batch = [message_to(grid, node, number(thread * 100 + turn)) for turn, node in enumerate(nodes)]
            return [(number_in(reply), reply.metadata.src_node_id) for reply in grid.send_and_receive(batch)]

        with ThreadPoolExecutor(16) as pool:
            for thread, answers in enumerate(pool.map(ask, range(16))):
                assert sorted(answers) == [(thread * 100 + turn, node) for turn, node in enumerate(nodes)]

    run(main, nodes=3)


# Errors.


def test_a_client_that_raises() -> None:
    """A ClientApp that raises, or returns no Message, is an Error reply of code 2 from its node; the next is served."""
    app, errors = ClientApp(), []

    @app.query()
    def query(message: Any, context: Any) -> Any:
        if number_in(message) == 0:
            raise ZeroDivisionError("mine")
        return {} if number_in(message) == 1 else reply_to(message, message.content)

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        for turn in range(2):
            [reply] = grid.send_and_receive([message_to(grid, node, number(turn))])
            assert reply.has_error()
            assert not reply.has_content()
            assert reply.metadata.src_node_id == node
            errors.append((reply.error.code, reply.error.reason))
        [reply] = grid.send_and_receive([message_to(grid, node, number(2))])
        assert number_in(reply) == 2

    run_simulation(server(main), app, 1)
    assert {code for code, _ in errors} == {ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
    assert errors[0][1] == "ZeroDivisionError: mine"
    assert "answered a query message with dict, not with a Message" in errors[1][1]


def test_an_error_of_the_clients_own() -> None:
    """A ClientApp may answer with an Error of any code, which arrives as it is."""
    app, errors = ClientApp(), []

    @app.query()
    def query(message: Any, context: Any) -> Any:
        error = Error(123, "no data here")
        return Message(error, reply_to=message) if HAS_MESSAGE_API else message.create_error_reply(error)

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        errors.extend(reply.error for reply in grid.send_and_receive([message_to(grid, node, RecordDict())]))

    run_simulation(server(main), app, 1)
    assert [(error.code, error.reason) for error in errors] == [(123, "no data here")]


def test_a_node_that_is_gone() -> None:
    """NODE_UNAVAILABLE comes from a node that died with the message; as in Flower, one that nobody knows is Error 3."""
    redis = FakeServer()

    def main(grid: Any, context: Any) -> None:
        [alive] = grid.get_node_ids()
        gone = Registration(fake_connection(redis), lease=0.3)
        gone.register()
        unknown = 12345
        batch = [message_to(grid, node, number(1)) for node in (alive, gone.node_id, unknown)]
        replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(batch)}
        assert replies.keys() == {alive, gone.node_id, unknown}
        assert replies[alive].has_content()
        codes = {gone.node_id: ErrorCode.NODE_UNAVAILABLE, unknown: ErrorCode.MESSAGE_UNAVAILABLE}
        for node, code in codes.items():
            assert replies[node].error.code == code
            assert replies[node].metadata.dst_node_id == context.node_id
        assert "12345" in replies[unknown].error.reason

    with Federation(client(echo), 1, connect=lambda: fake_connection(redis)) as nodes:
        nodes.run(server(main))


def test_a_reply_whose_ttl_has_passed() -> None:
    """It is Error 4, wherever the app collects it, and the same reply in time is not."""

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        clock = Clock()
        for late in (False, True):
            [message_id] = grid.push_messages([message_to(grid, node, number(int(late)))])
            clock.now = time.time() + 100 * late
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(grid_module, "time", clock)
                [reply] = pulled(grid, [message_id])
            assert reply.has_error() == late
        assert reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
        assert reply.error.reason == "the reply's ttl of 50 s has passed"
        assert replied_to(reply) == message_id

    app = ClientApp()

    @app.query()
    def query(message: Any, context: Any) -> Any:
        reply = reply_to(message, message.content)
        reply.metadata.ttl = 50.0
        return reply

    run_simulation(server(main), app, 1)


def test_a_grid_belongs_to_its_run() -> None:
    """set_run takes this run and no other one, and `run` is a copy that an app cannot change."""

    def main(grid: Any, context: Any) -> None:
        grid.set_run(grid.run)
        grid.run.run_id = 7
        grid.run.override_config["lr"] = 7
        assert grid.run.run_id == context.run_id
        assert grid.run.override_config == {"lr": 0.5}
        other = grid.run
        other.run_id = 7
        for wrong in (other, 7):
            with pytest.raises(RuntimeError, match=rf"this Grid belongs to run {context.run_id}, not to 7"):
                grid.set_run(wrong)

    run_simulation(server(main), client(echo), 1, run_config={"lr": 0.5})


def test_the_overrides_are_what_was_given() -> None:
    """A run of a project has its defaults in the run config, and in override_config only what went over them."""
    given = {"lr": 0.5}
    driver = Driver(fake_connection(), "app", {"lr": 0.5, "rounds": 3}, overrides=tuple(given))
    seen: list[Any] = []
    adapt_server_app(server(lambda grid, context: seen.append((grid.run.override_config, dict(context.run_config)))))(
        driver, driver.context
    )
    assert seen == [(given, {"lr": 0.5, "rounds": 3})]
    driver.end()


def test_nodes_have_the_fields_that_are_known() -> None:
    """get_nodes gives id, name and since when, of those that are online; what has no field there is left out."""
    redis = FakeServer()
    before = time.time() - 1

    def main(grid: Any, context: Any) -> None:
        named = Registration(fake_connection(redis), "berlin", lease=600.0)
        named.register()
        gone = Registration(fake_connection(redis), "gone", lease=600.0)
        gone.register()
        gone.leave()
        nodes = {node.node_id: node for node in grid.get_nodes()}
        assert set(nodes) == set(grid.get_node_ids())
        node = nodes.pop(named.node_id)
        [unnamed] = nodes.values()
        if hasattr(node, "name"):  # since 1.42
            assert (node.name, unnamed.name) == ("berlin", "")
        if hasattr(node, "last_activated_at"):
            assert node.status == "online"
            since = datetime.fromisoformat(node.last_activated_at)
            assert before <= since.timestamp() <= time.time() + 1
            assert node.registered_at == node.last_activated_at

    with Federation(client(echo), 1, connect=lambda: fake_connection(redis)) as nodes:
        nodes.run(server(main))


class Client(NumPyClient):  # type: ignore[misc,valid-type]
    """Returns what it is given; the node of partition 1 raises if there are three."""

    def __init__(self, context: Any) -> None:
        self.config = context.node_config

    def fit(self, parameters: Any, config: Any) -> Any:
        if self.config["partition-id"] == 1 and self.config["num-partitions"] == 3:
            raise RuntimeError("fit failed")
        return parameters, 1, {}


def run_legacy(strategy: Any, mods: list[Any], nodes: int, connect: Any = None) -> None:
    """Run one round of a legacy strategy: it sends each message from a thread of its own, and waits without end."""

    def server_fn(context: Any) -> Any:
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=1))

    app = ClientApp(client_fn=lambda context: Client(context).to_client(), mods=mods)
    with Federation(app, nodes, connect=connect) as federation:
        federation.run(ServerApp(server_fn=server_fn))


def legacy_strategy(nodes: int, weights: "np.ndarray[Any, Any]", kind: Any = legacy.FedAvg) -> Any:
    """A FedAvg that trains on all nodes and evaluates on none."""
    return kind(
        min_fit_clients=nodes,
        min_available_clients=nodes,
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters([weights]),
    )


def test_a_legacy_strategy_counts_failures() -> None:
    """A legacy strategy is told of one failure when one of three clients raises, and of two results."""
    counted = []

    class FedAvg(legacy.FedAvg):  # type: ignore[misc,name-defined]
        def aggregate_fit(self, number: int, results: Any, failures: Any) -> Any:
            counted.append((len(results), [str(failure) for failure in failures]))
            return super().aggregate_fit(number, results, failures)

    run_legacy(legacy_strategy(3, np.zeros(2), FedAvg), [], 3)
    [(results, [failure])] = counted
    assert results == 2
    assert "RuntimeError: fit failed" in failure


# States and runs.


def test_legacy_results_have_one_order() -> None:
    """A legacy strategy gets what its threads collected by the ids of the nodes, not by who was first."""
    orders = []

    class Looking(legacy.FedAvg):  # type: ignore[misc,name-defined]
        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            orders.append([client.node_id for client, _ in results])
            return super().aggregate_fit(server_round, results, failures)

    run_legacy(legacy_strategy(6, np.zeros(3), Looking), [], 6)
    [order] = orders
    assert len(order) == 6
    assert order == sorted(order)


def count_up(message: Any, context: Any) -> Any:
    """Counts the messages of a run in its state; a negative number makes it raise when it has counted."""
    count = 1 + (record_in(context.state, "m")["n"] if records_in(context.state) else 0)
    put_record(context.state, "c", ConfigRecord({"text": "x" * count}))
    put_record(context.state, "m", MetricRecord({"n": count}))
    assert [name for name, _ in records_in(context.state)] == (["c", "m"] if HAS_MESSAGE_API else ["m", "c"])
    assert record_in(context.state, "c")["text"] == "x" * count
    if number_in(message) < 0:
        raise ValueError("undone")
    return number(count)


def test_the_state_of_a_client() -> None:
    """context.state counts up in a run, what a failing call did to it is undone, and the next run begins anew."""

    def main(grid: Any, context: Any) -> None:
        counts = {}
        for value in (1, 1, -1, 1):
            batch = [message_to(grid, node, number(value)) for node in grid.get_node_ids()]
            for reply in grid.send_and_receive(batch):
                node = reply.metadata.src_node_id
                counts.setdefault(node, []).append(0 if reply.has_error() else number_in(reply))
        assert list(counts.values()) == [[1, 2, 0, 3]] * 2

    with Federation(client(count_up), 2) as nodes:
        for _ in range(2):
            nodes.run(server(main))


def test_the_state_of_a_server() -> None:
    """What the ServerApp leaves in context.state is in the result: what it put there, and what it changed in place."""

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        metrics = MetricRecord({"rounds": 0})
        put_record(context.state, "arrays", arrays_of(np.arange(3.0)))
        put_record(context.state, "metrics", metrics)
        for _ in range(3):
            grid.send_and_receive([message_to(grid, node, number(1))])
            metrics["rounds"] += 1

    state = run(main).state
    assert dict(state.metrics_records["metrics"]) == {"rounds": 3}
    np.testing.assert_array_equal(state.parameters_records["arrays"]["0"].numpy(), np.arange(3.0))


def test_two_runs_at_once() -> None:
    """Runs at the same time over the same nodes have their own messages, configs and states.

    flwr keeps one identity for the whole process, which is another run's half of the time here: what is pushed carries
    the run of its Grid all the same.
    """
    turns, both = 5, threading.Barrier(2)
    results: dict[str, list[Any]] = {"a": [], "b": []}

    def answer(message: Any, context: Any) -> Any:
        assert message.metadata.run_id == context.run_id
        content = count_up(message, context)
        seen = {"run": context.run_id, "name": context.run_config["name"], "value": number_in(message)}
        return records_of({"c": ConfigRecord({**seen, "count": record_in(content, "m")["n"]})})

    def main(grid: Any, context: Any) -> None:
        name = context.run_config["name"]
        for turn in range(turns):
            both.wait(20)
            batch = [message_to(grid, node, number(turn)) for node in grid.get_node_ids()]
            both.wait(20)
            if turn % 2:
                replies = list(grid.send_and_receive(batch))
            else:
                ids = grid.push_messages(batch)
                assert all(message.metadata.run_id == context.run_id for message in batch)
                replies = pulled(grid, ids)
            for reply in replies:
                assert reply.metadata.run_id == context.run_id
                seen = dict(record_in(reply.content, "c"))
                assert seen == {"run": context.run_id, "name": name, "value": turn, "count": turn + 1}
            results[name].append(len(replies))

    with Federation(client(answer), 3) as nodes, ThreadPoolExecutor(2) as pool:
        app = server(main)
        runs = [pool.submit(nodes.run, app, {"name": name}) for name in results]
        assert len({done.result(50).run_id for done in runs}) == 2
    assert results == {"a": [3] * turns, "b": [3] * turns}


# Large arrays.

LARGE = np.random.default_rng(0).integers(0, 256, 2 * 1024 * 1024, dtype=np.uint8)


def chunks_in(redis: FakeServer) -> set[bytes]:
    """The keys of the chunks of broadcasts."""
    return set(fake_connection(redis).redis.scan_iter("*:blob:*", count=1000))


def chunks_of(content: Any) -> int:
    """How many chunks a content of flwr makes."""
    return len(set(Payload(encode_content(record_set_of(content))).manifest.digests))


def test_a_broadcast_is_stored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 2 MiB for four nodes is in Redis once, also where each message has records of its own.

    Records that the messages share are converted once.
    """
    redis, gate, counts, conversions = FakeServer(), Gate(), [], []

    def spy(content: Any) -> Any:
        conversions.append(content)
        return record_set_of(content)

    monkeypatch.setattr("brokerfl.flower.grid.record_set_of", spy)

    def main(grid: Any, context: Any) -> None:
        nodes = list(grid.get_node_ids())
        shared = records_of({"a": arrays_of(LARGE)})
        ids = list(grid.push_messages([message_to(grid, node, shared) for node in nodes]))
        assert len(conversions) == 1
        own = [records_of({"a": arrays_of(LARGE.copy())}) for _ in nodes]
        ids += grid.push_messages([message_to(grid, node, content) for node, content in zip(nodes, own, strict=True)])
        counts.extend([len(chunks_in(redis)), chunks_of(shared)])
        gate.go.set()
        for reply in pulled(grid, ids):
            np.testing.assert_array_equal(ndarrays_in(record_in(reply.content, "a"))[0], LARGE)

    with Federation(client(gate), 4, connect=lambda: fake_connection(redis)) as nodes:
        nodes.run(server(main))
    stored, needed = counts
    assert stored == needed == math.ceil(LARGE.nbytes / CHUNK) + 1  # and one for what describes it


def test_a_broadcast_of_a_legacy_strategy_is_stored_once() -> None:
    """So is one of a legacy strategy, which makes and sends each message in a thread of its own."""
    redis, nodes = FakeServer(), 4
    all_are_here, counts = threading.Barrier(nodes), []

    def look(message: Any, context: Any, call_next: Any) -> Any:
        needed = chunks_of(message.content)
        if all_are_here.wait(20) == 0:
            counts.append((len(chunks_in(redis)), needed))
        all_are_here.wait(20)
        return call_next(message, context)

    run_legacy(legacy_strategy(nodes, LARGE), [look], nodes, lambda: fake_connection(redis))
    [(stored, needed)] = counts
    assert needed == math.ceil(LARGE.nbytes / CHUNK) + 1
    assert stored == needed + 1  # the record of the steps has the same chunks, and says what they are


# What a run is told, and what it keeps.


class Dead(BaseException):
    """What a ServerApp dies of here."""


def test_a_resumed_app_that_does_not_go_on_gets_its_own_replies() -> None:
    """Its state says something, but not its round: its first message is executed, not answered by one of the last."""
    server_side, seen = FakeServer(), []

    def answer(message: Any, context: Any) -> Any:
        seen.append(record_in(message.content, "m")["n"])
        return message.content

    def main(grid: Any, context: Any) -> None:
        put_record(context.state, "note", MetricRecord({"n": 1}))
        [node] = grid.get_node_ids()
        for number in (1, 2, 3):
            content = records_of({"m": MetricRecord({"n": number})})
            if number == 3 and len(seen) == 2:
                grid.push_messages([message_to(grid, node, content)])
                raise Dead
            [reply] = grid.send_and_receive([message_to(grid, node, content)])
            assert record_in(reply.content, "m")["n"] == number

    app = adapt_server_app(server(main))
    with Federation(client(answer), 1, connect=lambda: fake_connection(server_side)):
        former = Driver(fake_connection(server_side), "app")
        with pytest.raises(Dead):
            app(former, former.context)
        former.detach()
        driver = Driver(fake_connection(server_side), "app", resume=former.run.run_id)
        app(driver, driver.context)
        driver.end()
    assert [number for number in seen if number != 3] == [1, 2, 1, 2]


def test_a_push_of_a_named_group_settles_nothing_of_that_group() -> None:
    """As our Driver: an app that keeps its round once a round has train and evaluate in one commit, not in two."""

    def main(grid: Any, context: Any) -> None:
        driver = driver_of(grid)
        [node] = grid.get_node_ids()
        sizes = []
        for group in ("1", "1", "2", "", ""):
            message = message_to(grid, node, records_of({}))
            message.metadata.group_id = group
            list(grid.send_and_receive([message]))
            sizes.append(unsettled(driver))
        assert sizes == [1, 2, 1, 1, 1]

    run_simulation(server(main), client(lambda message, context: message.content), 1)


def test_what_a_waiting_thread_has_not_got_is_not_settled() -> None:
    """A push of another thread settles no reply of a `send_and_receive` that has not returned."""
    gate = threading.Event()

    def answer(message: Any, context: Any) -> Any:
        if context.node_config["partition-id"] == 1:
            assert gate.wait(20)
        return message.content

    def main(grid: Any, context: Any) -> None:
        driver = driver_of(grid)
        by_answer = {}
        for node in grid.get_node_ids():
            by_answer[node] = message_to(grid, node, records_of({}))
        with ThreadPoolExecutor(1) as pool:
            both = pool.submit(grid.send_and_receive, list(by_answer.values()))
            eventually(lambda: taken(driver) == 1)  # one has answered, and is in the other thread's hands
            driver.push_messages([], checkpoint=True)
            assert unsettled(driver) == 2
            gate.set()
            assert len(both.result()) == 2
        driver.push_messages([], checkpoint=True)
        assert unsettled(driver) == 0

    run_simulation(server(main), client(answer), 2)


def test_a_stopped_run_ends_whoever_looks_for_nodes() -> None:
    """flwr's strategies look until there are enough: they end when the run is stopped, in spite of any handler."""
    server_side = FakeServer()

    def main(grid: Any, context: Any) -> None:
        stop_run(fake_connection(server_side), context.run_id, patience=0.1)
        while len(list(grid.get_node_ids())) < 5:
            try:
                grid.get_node_ids()
                threading.Event().wait(0.01)
            except Exception:
                continue

    driver = Driver(fake_connection(server_side), "app", lease=0.6)
    with pytest.raises(RunStopped):
        adapt_server_app(server(main))(driver, driver.context)
    driver.detach()


def test_a_stopped_run_ends_whoever_pushes() -> None:
    """An app that only pushes ends when the run is stopped: its messages are not refused for ever."""
    server_side = FakeServer()

    def main(grid: Any, context: Any) -> None:
        stop_run(fake_connection(server_side), context.run_id, patience=0.1)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            grid.push_messages([message_to(grid, 5, number(1))])

    driver = Driver(fake_connection(server_side), "app", lease=0.6)
    with pytest.raises(RunStopped):
        adapt_server_app(server(main))(driver, driver.context)
    driver.detach()


def test_a_state_may_change_while_another_thread_pushes() -> None:
    """Pushes read `context.state` whole, whatever other threads put into it meanwhile."""

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        record = MetricRecord({"0": 0})
        put_record(context.state, "m", record)
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                record[str(number % 1000)] = number
                if number % 3 == 0:
                    del record[str((number - 1) % 1000)]

        def called_back(phase: str, info: dict[str, int]) -> None:
            sum(range(100))

        interval, threshold = sys.getswitchinterval(), gc.get_threshold()
        sys.setswitchinterval(1e-5)  # threads take turns within one look at the state,
        gc.set_threshold(50)  # and within one call of C that makes objects, where the collector calls back
        gc.callbacks.append(called_back)
        gc.enable()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                for _ in range(20):
                    grid.send_and_receive([message_to(grid, node, records_of({}))])
            finally:
                stop.set()
                gc.disable()
                gc.callbacks.remove(called_back)
                gc.set_threshold(*threshold)
                sys.setswitchinterval(interval)
            writing.result()

    run_simulation(server(main), client(lambda message, context: message.content), 1)


# What stays in Redis.


def in_redis(grid: Any) -> int:
    """How many entries Redis has in the run's ledger and in the streams of its nodes."""
    driver = driver_of(grid)
    keys, run_id, redis = driver.connection.keys, driver.run.run_id, driver.connection.redis
    streams = [key for node in grid.get_node_ids() for key in keys.of_node_and_run(node, run_id)]
    return int(redis.hlen(keys.ledger(run_id)) + sum(map(redis.xlen, streams)))


def test_what_does_not_come_in_time_is_cancelled() -> None:
    """`send_and_receive` never gave the app its id: no node executes it any more, and nothing of it stays in Redis."""
    gate, found = Gate(), []

    def main(grid: Any, context: Any) -> None:
        [node] = grid.get_node_ids()
        for turn in range(4):
            assert grid.send_and_receive([message_to(grid, node, number(turn))], timeout=0.1) == []
            assert gate.begun.acquire(timeout=20 if turn == 0 else 0) is (turn == 0)
        gate.go.set()
        found.extend(grid.send_and_receive([message_to(grid, node, number(9))]))
        grid.push_messages([])
        assert in_redis(grid) <= 3, "the last one and its reply"

    run(main, gate)
    assert [number_in(reply) for reply in found] == [9]
    assert gate.begun.acquire(timeout=0)
    assert not gate.begun.acquire(timeout=0)


@pytest.mark.parametrize("group", ["", "only"])
def test_an_asynchronous_app_leaves_nothing_behind(group: str) -> None:
    """FedBuff with one constant group, or none: over 500 replies Redis holds a few of each node."""
    sizes = []

    def main(grid: Any, context: Any) -> None:
        def push(nodes: list[int]) -> list[str]:
            return list(grid.push_messages([message_to(grid, node, number(1), group=group) for node in nodes]))

        nodes = grid.get_node_ids()
        ids, done = push(nodes), 0
        while done < 500:
            replies = grid.pull_messages(ids)
            arrived = {replied_to(reply) for reply in replies}
            ids = [each for each in ids if each not in arrived]
            ids += push([reply.metadata.src_node_id for reply in replies])
            done += len(replies)
            sizes.append(in_redis(grid))

    run(main, nodes=3)
    most = 2 if group == "" else 1 + 4
    assert max(sizes) <= 3 * most * 2, "so many replies of each node, each also in the ledger"


def test_a_push_within_a_round_moves_nothing_on() -> None:
    """Another node, another type, or four times the same: what was pulled stays until the round is over."""

    def main(grid: Any, context: Any) -> None:
        first, second = grid.get_node_ids()
        pushes = [(first, "query")] * 4 + [(second, "query"), (second, "query.other")]
        for count, (node, kind) in enumerate(pushes, start=1):
            assert len(grid.send_and_receive([message_to(grid, node, number(1), kind, group="1")])) == 1
            assert unsettled(driver_of(grid)) == count
        grid.send_and_receive([message_to(grid, first, number(1), group="1")])
        assert unsettled(driver_of(grid)) == 1

    run(main, nodes=2)
