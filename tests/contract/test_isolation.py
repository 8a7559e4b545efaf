"""Promise 4: a run sees only its own messages; when it ends none of its keys remain, also when a node answers late."""

import threading

from brokerfl.client import ClientApp
from brokerfl.common import ConfigsRecord, Context, Message, MetricsRecord, RecordSet
from tests.apps import Gate, driving, echo_app, eventually, federation, number, number_in
from tests.conftest import PREFIX, Backend

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


def counting_app() -> ClientApp:
    """Counts its calls in the context's state and tells the run's config."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        record = context.state.metrics_records.setdefault("calls", MetricsRecord({"n": 0}))
        record["n"] = int(record["n"]) + 1  # type: ignore[arg-type]
        answer = MetricsRecord({"n": record["n"], "sent": message.content.metrics_records["m"]["n"]})
        config = ConfigsRecord({"run": str(context.run_id), "colour": str(context.run_config.get("colour"))})
        return message.create_reply(RecordSet(metrics_records={"m": answer}, configs_records={"c": config}))

    return app


def test_two_runs_share_nodes_and_nothing_else(backend: Backend) -> None:
    """Two runs at once on the same nodes: each sees its own replies, its own config, and a state of its own."""
    rounds = 5
    with (
        federation(backend, counting_app(), nodes=3) as nodes,
        driving(backend, run_config={"colour": "red"}) as red,
        driving(backend, run_config={"colour": "blue"}) as blue,
    ):
        seen: dict[str, list[Message]] = {"red": [], "blue": []}

        def run(name: str) -> None:
            driver = red if name == "red" else blue
            for turn in range(rounds):
                value = turn + (100 if name == "red" else 200)
                batch = [driver.create_message(number(value), "train", node.node_id, str(turn)) for node in nodes.nodes]
                seen[name] += driver.send_and_receive(batch)

        threads = [threading.Thread(target=run, args=(name,)) for name in seen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, driver in (("red", red), ("blue", blue)):
            assert len(seen[name]) == 3 * rounds
            for reply in seen[name]:
                config = reply.content.configs_records["c"]
                assert config["colour"] == name
                assert config["run"] == str(driver.run.run_id)
                assert reply.metadata.run_id == driver.run.run_id
                sent = reply.content.metrics_records["m"]["sent"]
                assert isinstance(sent, int)
                assert sent // 100 == (1 if name == "red" else 2)
                assert number_in(reply) == sent % 100 + 1, "the state counted a call of the other run"


def test_ids_of_another_run_yield_nothing_of_it(backend: Backend) -> None:
    """A Driver given the message ids of another run gets Error replies, and the other run still gets its replies."""
    with federation(backend, nodes=1) as nodes, driving(backend) as mine, driving(backend) as other:
        node = nodes.nodes[0].node_id
        ids = other.push_messages([other.create_message(number(1), "train", node, "1")])
        [error] = mine.pull_messages(ids)
        assert error.has_error()
        [reply] = other.replies(ids)
        assert number_in(reply) == 1


def test_a_forged_reply_is_dropped(backend: Backend) -> None:
    """An entry in the outbox of a node that was not asked answers nothing, and does not disturb the right reply."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        keys, run = driver._connection.keys, driver.run.run_id
        node = nodes.nodes[0].node_id
        ids = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        assert gate.begun.acquire(timeout=10)
        forger = 99
        driver._ledger.contacted.add(forger)
        backend.admin.xadd(keys.outbox(forger, run), {"i": ids[0], "h": b"\x01"})
        backend.admin.pexpire(keys.outbox(forger, run), 60_000)
        backend.admin.xadd(keys.bell(run), {"n": str(forger)})
        eventually(lambda: (driver.pull_messages(ids), driver._ledger.dropped)[1])
        gate.go.set()
        [reply] = driver.replies(ids)
        assert number_in(reply) == 1


def test_nothing_remains_when_runs_end(backend: Backend) -> None:
    """After two runs a scan shows the registry and the nodes' own keys; when the nodes left, only the registry."""
    with federation(backend, nodes=2) as nodes:
        for _ in range(2):
            with driving(backend) as driver:
                driver.send_and_receive(
                    [driver.create_message(number(1), "train", node.node_id, "1") for node in nodes.nodes]
                )
        left = {key.decode() for key in backend.admin.scan_iter()}
        own = {f"{PREFIX}:{{{node.node_id}}}:{name}" for node in nodes.nodes for name in ("info", "lease", "ctl")}
        assert left == own | {f"{PREFIX}:id", f"{PREFIX}:nodes", f"{PREFIX}:runs"}
    assert {key.decode() for key in backend.admin.scan_iter()} == {f"{PREFIX}:id", f"{PREFIX}:runs"}


def test_a_late_node_revives_nothing(backend: Backend) -> None:
    """A node that answers after the run has ended creates no key, and serves the next run."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes:
        node = nodes.nodes[0]
        with driving(backend) as driver:
            run = driver.run.run_id
            driver.push_messages([driver.create_message(number(1), "train", node.node_id, "1")])
            assert gate.begun.acquire(timeout=10)
        gate.go.set()
        with driving(backend) as driver:
            [reply] = driver.send_and_receive([driver.create_message(number(2), "train", node.node_id, "1")])
            assert number_in(reply) == 2
        assert not [key for key in backend.admin.scan_iter() if str(run).encode() in key]


def test_state_goes_with_the_run(backend: Backend) -> None:
    """The Context of a run is kept between its messages and forgotten when it ends."""
    with federation(backend, counting_app(), nodes=1) as nodes:
        node = nodes.nodes[0]
        for _ in range(2):
            with driving(backend) as driver:
                for expected in (1, 2, 3):
                    [reply] = driver.send_and_receive([driver.create_message(number(1), "train", node.node_id, "1")])
                    assert number_in(reply) == expected
        eventually(lambda: not node._service.executor._contexts)


def test_settled_replies_leave_redis_when_the_run_moves_on(backend: Backend) -> None:
    """Replies stay in the outbox until the next group is pushed; then they go, and the ledger holds only new ones."""
    with federation(backend, echo_app(), nodes=2) as nodes, driving(backend) as driver:
        keys, run = driver._connection.keys, driver.run.run_id
        ids = [node.node_id for node in nodes.nodes]

        def batch(group: str) -> list[Message]:
            return [driver.create_message(number(1), "train", node, group) for node in ids]

        def in_outboxes() -> int:
            return sum(backend.admin.xlen(keys.outbox(node, run)) for node in ids)

        driver.send_and_receive(batch("1"))
        assert (backend.admin.hlen(keys.ledger(run)), in_outboxes()) == (2, 2)
        driver.send_and_receive(batch("1"))
        assert (backend.admin.hlen(keys.ledger(run)), in_outboxes()) == (4, 4)
        driver.send_and_receive(batch("2"))
        assert (backend.admin.hlen(keys.ledger(run)), in_outboxes()) == (2, 2)
        driver.checkpoint()
        driver.pull_messages([])
        assert (backend.admin.hlen(keys.ledger(run)), in_outboxes()) == (0, 0)
        assert all(backend.admin.xlen(keys.inbox(node, run)) == 0 for node in ids)
