"""Frames that cannot be read, on the way to a node and back: Errors that name the reason, and the loop goes on."""

import pytest

from brokerfl.client import ClientApp
from brokerfl.common import ConfigError, Context, Error, ErrorCode, Message, MessageTooLarge, MetricsRecord, RecordSet
from brokerfl.server import Driver
from brokerfl.wire import record
from tests.apps import Counter, Gate, driving, federation, number, number_in, runs_seen, text
from tests.conftest import Backend

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


def send_raw(backend: Backend, driver: Driver, node: int, change: dict[str, bytes]) -> list[str]:
    """Push a good message and replace its fields in the inbox before the node, which is busy, reads it."""
    keys, run = driver.connection.keys, driver.run.run_id
    ids = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
    inbox = keys.inbox(node, run)
    [(entry, fields)] = backend.admin.xrevrange(inbox, count=1)
    backend.admin.xdel(inbox, entry)
    backend.admin.xadd(inbox, {**{key.decode(): value for key, value in fields.items()}, **change})
    return ids


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"h": b"\x02whatever"}, "version 2, but this side speaks version 1", id="another version"),
        pytest.param({"h": b""}, "no header", id="no header"),
        pytest.param({"h": b"\x01\xc1"}, "not msgpack", id="not msgpack"),
        pytest.param({"h": b"\x01\x90"}, "not a list as this version writes it", id="another list"),
        pytest.param({"c": b"\x01\x80"}, "three kinds of records", id="another content"),
    ],
)
def test_a_node_answers_what_it_cannot_read(backend: Backend, change: dict[str, bytes], reason: str) -> None:
    """A frame that a node cannot read is answered with an Error that says why, and the next message is served."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        busy = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        assert gate.begun.acquire(timeout=10)
        ids = send_raw(backend, driver, node, change)
        gate.go.set()
        assert len(list(driver.replies(busy))) == 1
        [error] = driver.replies(ids)
        assert error.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        assert reason in (error.error.reason or "")
        [reply] = driver.send_and_receive([driver.create_message(number(2), "train", node, "1")])
        assert number_in(reply) == 2


def test_an_entry_without_an_id_is_removed(backend: Backend) -> None:
    """An inbox entry that names no message is removed, and the node goes on."""
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        inbox = driver.connection.keys.inbox(node, driver.run.run_id)
        backend.admin.xadd(inbox, {"x": "y"})
        [reply] = driver.send_and_receive([driver.create_message(number(2), "train", node, "1")])
        assert number_in(reply) == 2
        assert backend.admin.xlen(inbox) == 0


@pytest.mark.parametrize(
    "message_id",
    ["x", "a" * 31, "a" * 33, "A" * 32, "a" * 64 + "77 " + "b" * 32, "77 " + "b" * 29, "\u00b2" * 32, "g" * 32],
)
def test_an_id_that_is_none_is_refused(backend: Backend, message_id: str) -> None:
    """What is not 32 hex digits would overflow a node's record and accuse another message of a crash: it is removed."""
    counter = Counter()
    with federation(backend, counter.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        inbox = driver.connection.keys.inbox(node, driver.run.run_id)
        backend.admin.xadd(inbox, {"i": message_id.encode(), "h": "x"})
        assert driver.send_and_receive([driver.create_message(number(2), "train", node, "1")])[0].has_content()
        assert counter.calls == 2
        assert backend.admin.xlen(inbox) == 0
        assert backend.admin.xlen(driver.connection.keys.outbox(node, driver.run.run_id)) <= 2


def test_a_reply_of_another_version_is_error_4(backend: Backend) -> None:
    """A reply that the ServerApp cannot read ends as Error 4 that names both versions."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        [message_id] = driver.push_messages([driver.create_message(number(1), "train", node, "1")])
        assert gate.begun.acquire(timeout=10)
        outbox = driver.connection.keys.outbox(node, driver.run.run_id)
        backend.admin.xadd(outbox, {"i": message_id, "h": b"\x07abc"})
        backend.admin.xadd(driver.connection.keys.bell(driver.run.run_id), {"n": str(node)})
        [error] = driver.replies([message_id])
        assert error.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
        assert "version 7, but this side speaks version 1" in (error.error.reason or "")
        gate.go.set()


def test_a_message_above_the_limit_is_a_clear_error(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message above the one size limit is refused at the push; a reply above it is Error 2; both say the sizes."""
    monkeypatch.setattr(record, "MAX_MESSAGE_BYTES", 10_000)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_reply(text(a="x" * 10_001))

    with federation(backend, app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        with pytest.raises(MessageTooLarge, match="limit is 10,000 bytes"):
            driver.push_messages([driver.create_message(text(a="x" * 10_001), "train", node, "1")])
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "limit is 10,000 bytes" in (reply.error.reason or "")


def test_a_run_config_above_the_limit_is_refused(backend: Backend) -> None:
    """No node could read it: a ConfigError names the value and both sizes, and there is no run."""
    with pytest.raises(ConfigError, match=r"70,0\d\d bytes exceeds the limit of 65,536.*'prompt' has 70,000 char"):
        Driver(backend.connect(), "server:app", {"n": 1, "prompt": "x" * 70_000})
    assert runs_seen(backend.connect()) == []
    assert [*backend.admin.scan_iter()] == []


def test_a_header_above_the_limit_is_refused_at_the_push(backend: Backend) -> None:
    """A group or an action that no node could read is named; nothing is pushed. The longest that is pushed is answered.

    Its reply has the same group, and a reason when it is an Error.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_error_reply(Error(7, "€" * 100_000))

    with federation(backend, app, nodes=1) as nodes:
        node, driver = nodes.nodes[0].node_id, Driver(backend.connect(), "server:app")
        good = driver.create_message(number(1), "train", node, "1")
        for name, (action, group) in {
            "group_id": ("", "g" * 60_000),
            "message_type": (".x" + "y" * 59_993, "1"),
        }.items():
            with pytest.raises(ValueError, match=rf"exceeds the limit.*the {name} has 60,000 characters"):
                driver.push_messages([good, driver.create_message(number(1), "train" + action, node, group)])
        assert not backend.admin.exists(driver.connection.keys.ledger(driver.run.run_id))
        for group in ("g" * 49_000, "é" * 24_500):
            [reply] = driver.send_and_receive([driver.create_message(number(1), "train", node, group)])
            assert (reply.error.code, reply.metadata.group_id) == (7, group)
        driver.detach()
        Driver(backend.connect(), resume=driver.run.run_id).end()


def test_the_reason_of_an_apps_error_is_cut(backend: Backend) -> None:
    """An app's own Error arrives with its code and the start of its reason, also one that is no Unicode, or none."""
    reasons = ["a long traceback " * 5000, "no file \udcff", None]
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_error_reply(Error(0, reasons[number_in(message)]))

    with federation(backend, app, nodes=1) as nodes, driving(backend) as driver:
        for index, expected in enumerate([("a long traceback " * 5000)[:2000], "no file ?", None]):
            [reply] = driver.send_and_receive(
                [driver.create_message(number(index), "train", nodes.nodes[0].node_id, str(index))]
            )
            assert (reply.error.code, reply.error.reason) == (0, expected)


def test_more_lists_than_a_receiver_takes_are_refused(backend: Backend) -> None:
    """200,000 lists are refused at the push, and are Error 2 in a reply; both say how many there may be."""
    many = RecordSet(metrics_records={"m": MetricsRecord({str(i): [1.0] for i in range(200_000)})})
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_reply(many)

    with federation(backend, app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        with pytest.raises(MessageTooLarge, match="makes 200,005 lists and maps; at most 200,000 are allowed"):
            driver.push_messages([driver.create_message(many, "train", node, "1")])
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", node, "1")])
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "at most 200,000 are allowed" in (reply.error.reason or "")


def test_a_broken_exception_is_still_an_error_2(backend: Backend) -> None:
    """Exceptions whose text is no Unicode, endless, or itself raises, become Error 2 and the node goes on."""

    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("even this")

    exceptions = [OSError("no file \udcff"), ValueError("x" * 1_000_000), BrokenError()]
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise exceptions[number_in(message)]

    with federation(backend, app, nodes=1) as nodes, driving(backend) as driver:
        for index, exception in enumerate(exceptions):
            [reply] = driver.send_and_receive(
                [driver.create_message(number(index), "train", nodes.nodes[0].node_id, "1")]
            )
            assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            assert (reply.error.reason or "").startswith(type(exception).__name__)
            assert len(reply.error.reason or "") <= 2000


@pytest.mark.parametrize("error", [("2", "text"), (2, 5)])
def test_an_error_that_is_none_is_error_2(backend: Backend, error: tuple[object, object]) -> None:
    """A ClientApp that makes an Error of other types is told so by its own reply."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_error_reply(Error(*error))  # type: ignore[arg-type]

    with federation(backend, app, nodes=1) as nodes, driving(backend) as driver:
        [reply] = driver.send_and_receive([driver.create_message(number(1), "train", nodes.nodes[0].node_id, "1")])
        assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "an Error needs an int and a str" in reply.error.reason
