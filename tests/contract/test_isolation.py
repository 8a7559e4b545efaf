"""Promise 4: a run sees only its own messages; when it ends none of its keys remain, also when a node answers late."""

import threading

import pytest

from brokerfl.broker.inbox import Inboxes
from brokerfl.client import ClientApp
from brokerfl.common import ConfigsRecord, Context, Message, MetricsRecord, RecordSet
from brokerfl.server import Driver
from tests.apps import Gate, driving, echo_app, eventually, federation, number, number_in
from tests.conftest import PREFIX, Backend, is_tombstone, keys_of
from tests.stage import contact_soon, dropped, kept_contexts, known_runs, note_contact, push, silent

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
        keys, run = driver.connection.keys, driver.run.run_id
        node = nodes.nodes[0].node_id
        ids = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        assert gate.begun.acquire(timeout=10)
        forger = 99
        note_contact(driver, forger)
        backend.admin.xadd(keys.outbox(forger, run), {"i": ids[0], "h": b"\x01"})
        backend.admin.pexpire(keys.outbox(forger, run), 60_000)
        backend.admin.xadd(keys.bell(run), {"n": str(forger)})
        eventually(lambda: (driver.pull_messages(ids), dropped(driver))[1])
        gate.go.set()
        [reply] = driver.replies(ids)
        assert number_in(reply) == 1


@pytest.mark.without_rights("an operator takes unnamed nodes out of the registry")
def test_nothing_remains_when_runs_end(backend: Backend) -> None:
    """After two runs a scan shows the registry and the nodes' own keys; when the nodes left, only the registry."""
    with federation(backend, nodes=2) as nodes:
        for _ in range(2):
            with driving(backend) as driver:
                driver.send_and_receive(
                    [driver.create_message(number(1), "train", node.node_id, "1") for node in nodes.nodes]
                )
        left = all_keys(backend)
        own = {f"{PREFIX}:{{{node.node_id}}}:{name}" for node in nodes.nodes for name in ("info", "lease", "ctl")}
        assert left == own | {f"{PREFIX}:id", f"{PREFIX}:nodes", f"{PREFIX}:runs"}
    assert all_keys(backend) == {f"{PREFIX}:id", f"{PREFIX}:runs"}


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
        assert not keys_of(backend.admin, run)


def test_state_goes_with_the_run(backend: Backend) -> None:
    """The Context of a run is kept between its messages and forgotten when it ends."""
    with federation(backend, counting_app(), nodes=1) as nodes:
        node = nodes.nodes[0]
        for _ in range(2):
            with driving(backend) as driver:
                for expected in (1, 2, 3):
                    [reply] = driver.send_and_receive([driver.create_message(number(1), "train", node.node_id, "1")])
                    assert number_in(reply) == expected
        eventually(lambda: not kept_contexts(node))


def test_a_run_that_expired_is_forgotten_by_its_nodes(backend: Backend) -> None:
    """A detached run whose keys expired leaves nothing on a node that other runs keep busy: no field, no state."""
    with federation(backend, counting_app(), nodes=1) as nodes, driving(backend) as other:
        node = nodes.nodes[0]
        detached = Driver(backend.connect(), "server:app")
        for driver in (other, detached):
            driver.send_and_receive([driver.create_message(number(1), "train", node.node_id, "1")])
        detached.detach()
        run = detached.run.run_id
        assert known_runs(node) == {run, other.run.run_id}
        backend.admin.unlink(*(key for key in backend.admin.scan_iter() if str(run).encode() in key))
        with driving(backend) as third:
            third.send_and_receive([third.create_message(number(1), "train", node.node_id, "1")])
            [reply] = other.send_and_receive([other.create_message(number(1), "train", node.node_id, "2")])
            assert number_in(reply) == 2
            eventually(lambda: known_runs(node) == {other.run.run_id, third.run.run_id})
            assert run not in kept_contexts(node)
            fields = backend.admin.hkeys(other.connection.keys.node_runs(node.node_id))
            assert {*map(int, fields)} == {other.run.run_id, third.run.run_id}


def all_keys(backend: Backend) -> set[str]:
    """Every key, without the tombstones of runs."""
    return {key for each in backend.admin.scan_iter() if not is_tombstone(backend.admin, key := each.decode())}


def expired(backend: Backend, *run_ids: int) -> tuple[Inboxes, list[dict[int, bytes]]]:
    """The inboxes of a node 5 whose hash names runs without an inbox, and all that it tells of runs."""
    connection, told = backend.by_hand(), []  # type: ignore[var-annotated]
    runs = connection.keys.node_runs(5)
    backend.admin.hset(runs, mapping={str(run_id): "frame" for run_id in run_ids})
    backend.admin.pexpire(runs, 60_000)
    return Inboxes(connection, 5, told.append), told


def fields(backend: Backend, inboxes: Inboxes) -> set[int]:
    return {*map(int, backend.admin.hkeys(backend.connect().keys.node_runs(5)))}


def test_a_run_whose_inbox_is_of_another_type_is_not_over(backend: Backend) -> None:
    """A run whose inbox somebody made a string is not over; one without an inbox is."""
    inboxes, told = expired(backend, 7, 8)
    backend.admin.set(backend.by_hand().keys.inbox(5, 7), "no stream", px=60_000)
    inboxes.refresh()
    assert told == [{7: b"frame"}]
    assert fields(backend, inboxes) == {7}


def test_a_first_contact_that_a_node_forgets_comes_again(backend: Backend) -> None:
    """A node that takes a run out of its hash just when it is contacted hears of it again, for it owes a reply."""
    node = silent(backend)
    with driving(backend) as driver:
        push(driver, node, number(1))
        runs = driver.connection.keys.node_runs(node)
        backend.admin.hdel(runs, str(driver.run.run_id))
        contact_soon(driver)
        driver.pull_messages([])
        assert backend.admin.hkeys(runs) == [str(driver.run.run_id).encode()]


def test_settled_replies_leave_redis_when_the_run_moves_on(backend: Backend) -> None:
    """Replies stay in the outbox until the next group is pushed; then they go, and the ledger holds only new ones."""
    with federation(backend, echo_app(), nodes=2) as nodes, driving(backend) as driver:
        keys, run = driver.connection.keys, driver.run.run_id
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
