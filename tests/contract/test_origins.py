"""Which app runs and nodes belong to: another project is refused, other code is said, and scripts belong everywhere."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from brokerfl.broker.nodes import Registration, list_nodes
from brokerfl.broker.origins import read_origins
from brokerfl.client import ClientApp
from brokerfl.client.node import Node
from brokerfl.common import ConfigError, ErrorCode
from brokerfl.common.text import shown_node
from brokerfl.server import Driver
from brokerfl.wire.origin import Origin
from tests.apps import driving, echo_app, number_in
from tests.conftest import Backend
from tests.stage import NAME, reason_of, send, silent

#: TLS changes nothing here.
WITHOUT = ("redis-tls",)

CLIENT = Origin("client:app", "mnist", "1.0", "aaaa")
SERVER = Origin("server:app", "mnist", "1.0", "aaaa")
EDITED = Origin("server:app", "mnist", "1.0", "bbbb")
OTHER = Origin("server:app", "speech", "2.0", "cccc")
ALONE = Origin("lone:client")


@contextmanager
def serving(backend: Backend, origin: Origin | None, app: ClientApp | None = None, **options: Any) -> Iterator[Node]:
    """A named node that serves until the block ends."""
    ready = Event()
    connection = backend.connect()
    node = Node(
        app or echo_app(), connection, Registration(connection, NAME, origin=origin), on_ready=ready.set, **options
    )
    thread = Thread(target=node.serve)
    thread.start()
    assert ready.wait(20)
    try:
        yield node
    finally:
        node.stop()
        thread.join()


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (CLIENT, SERVER),
        (CLIENT, EDITED),
        (CLIENT, None),
        (ALONE, None),
        (ALONE, Origin("server:app")),
        (None, OTHER),
        (None, None),
    ],
)
def test_what_belongs_together_works_together(backend: Backend, there: Origin | None, here: Origin | None) -> None:
    """The same project, edited or not; two apps without one; a script with everybody."""
    with serving(backend, there) as node, driving(backend, origin=here) as driver:
        assert number_in(send(driver, node, 7)) == 7


@pytest.mark.parametrize(
    ("there", "here", "reason"),
    [
        (CLIENT, OTHER, r"runs client:app of project mnist 1.0 \(aaaa\), but .* server:app of project speech 2.0 "),
        (ALONE, OTHER, "runs lone:client, which belongs to no project, but .* to server:app of project speech"),
        (CLIENT, Origin("server:app"), r"of project mnist 1.0 \(aaaa\), but .* to server:app, which belongs to no pro"),
    ],
)
def test_another_project_is_refused(
    backend: Backend, there: Origin, here: Origin, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each message is Error 1 with both names, the app is not called, and the node says it once for the run."""
    executed = []
    app = ClientApp()
    app.train()(lambda message, context: executed.append(message) or message.create_reply(message.content))
    with serving(backend, there, app) as node, driving(backend, origin=here) as driver:
        for _ in range(2):
            found = reason_of(send(driver, node), ErrorCode.LOAD_CLIENT_APP_EXCEPTION)
            assert re.search(reason, found)
            assert "--any-app" in found
    assert executed == []
    assert caplog.text.count(f"Run {driver.run.run_id} is refused: {shown_node(node.node_id, NAME)} runs ") == 1


def test_a_node_of_any_app_serves_all(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """With any_app, the messages of another project are executed, and nothing is said."""
    with serving(backend, CLIENT, any_app=True) as node, driving(backend, origin=OTHER) as driver:
        assert number_in(send(driver, node, 7)) == 7
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_other_code_of_a_project_is_said_once(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Node and ServerApp each warn once for the run and node, with both digests, and go on."""
    with serving(backend, CLIENT) as node:
        with driving(backend, origin=EDITED) as driver:
            assert [number_in(send(driver, node, turn, group=str(turn))) for turn in range(3)] == [0, 1, 2]
        both = ["mnist 1.0 (bbbb) there, mnist 1.0 (aaaa) here", "mnist 1.0 (aaaa) there, mnist 1.0 (bbbb) here"]
        assert sorted(text.partition(": ")[2] for text in warnings(caplog)) == sorted(both)
        caplog.clear()
        with driving(backend, origin=SERVER) as driver:
            send(driver, node)
    assert warnings(caplog) == []


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_version_is_compared_too() -> None:
    """Another version is other code; an unknown digest is not compared, nor is an app that stands alone."""
    assert SERVER.is_other_code_than(Origin("client:app", "mnist", "1.1", "aaaa"))
    assert not SERVER.is_other_code_than(Origin("client:app", "mnist", "1.0", ""))
    assert not Origin("a:b").is_other_code_than(Origin("c:d"))
    assert not SERVER.is_other_code_than(OTHER)


def test_a_run_belongs_to_its_project(backend: Backend) -> None:
    """Another project does not resume it, even if its app has the same name; without a name it may be renamed."""
    former = Driver(backend.connect(), "server:app", origin=SERVER)
    former.detach()
    run_id = former.run.run_id
    for other in (OTHER, Origin("server:app")):
        with pytest.raises(ConfigError, match=r"belongs to mnist 1\.0 \(aaaa\), not to .* --another-app"):
            Driver(backend.connect(), "server:app", resume=run_id, origin=other)
    with serving(backend, OTHER) as node:
        driver = Driver(backend.connect(), "", resume=run_id, origin=OTHER)
        assert number_in(send(driver, node, 7)) == 7
        driver.end()


def test_nodes_learn_of_what_was_edited_before_a_resume(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """A node that met the run before, and goes on with the old code, warns of the new one, and so does the run."""
    with serving(backend, CLIENT) as node:
        former = Driver(backend.connect(), "server:app", origin=SERVER)
        send(former, node)
        former.detach()
        assert warnings(caplog) == []
        driver = Driver(backend.connect(), "server:app", resume=former.run.run_id, origin=EDITED)
        assert number_in(send(driver, node, 7, group="2")) == 7
        assert len(warnings(caplog)) == 2
        assert all("(aaaa)" in text and "(bbbb)" in text for text in warnings(caplog))
        driver.detach()
        again = Driver(backend.connect(), resume=former.run.run_id)  # a script keeps what the run says
        assert again.run.origin == EDITED
        again.end()


def test_the_registry_shows_the_app(backend: Backend) -> None:
    """It is listed with the node; what a node of a script or somebody else wrote there is unknown."""
    with serving(backend, CLIENT) as node:
        [info] = list_nodes(backend.connect())
        assert info.origin == CLIENT
        key = backend.connect().keys.node_info(node.node_id)
        for forged in ("", "[", "[1]", '["a"]', '["a", "b", "c", "not hex"]', "[" * 9000, '["a", "b", 1, ""]'):
            backend.admin.hset(key, "app", forged)
            [info] = list_nodes(backend.connect())
            assert info.origin is None
            assert list(read_origins(backend.connect(), [node.node_id])) == []
    unnamed = silent(backend, "another")
    assert {info.node_id: info.origin for info in list_nodes(backend.connect())}[unnamed] is None


def test_what_is_told_is_bounded(backend: Backend) -> None:
    """Names of any length are cut before they are sent, and what is longer was not sent by brokerfl."""
    long = Origin("m:" + "a" * 1000, "p" * 1000, "v" * 1000, "ab")
    with serving(backend, long) as node, driving(backend, origin=long) as driver:
        assert number_in(send(driver, node, 7)) == 7
        [(_, told)] = read_origins(backend.connect(), [node.node_id])
    assert (len(told.app), len(told.project), len(told.version)) == (100, 100, 100)
