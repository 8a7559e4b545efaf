"""References: which run or node a user means."""

import pytest

from brokerfl.broker.connection import Connection
from brokerfl.cli.references import node_called, run_called
from brokerfl.common import NodeNotFound, RunNotFound
from brokerfl.view.reasons import NodeState, RunState
from tests.conftest import fake_connection
from tests.views import NOW, node_view, overview_of, run_view

RUNS = [
    run_view(1111222233334444, "mnist"), run_view(1111222255556666, "twice"), run_view(9999000011112222, "twice"),
    run_view(7777000011112222, "1111222233334444"), run_view(8888000011112222, "9999"), run_view(1234567, "é"),
    run_view(1234999, state=RunState.COMPLETED, ended=NOW - 5),
    run_view(3333000011112222, state=RunState.STOPPED, ended=NOW),
]  # fmt: skip

NODES = [node_view(4444000011112222, "site-1"), node_view(4444000055556666, "site-2", NodeState.LOST)]


@pytest.fixture
def connection() -> Connection:
    return fake_connection()


@pytest.mark.parametrize(
    ("text", "run_id"),
    [
        ("1111222233334444", 1111222233334444),  # an id goes before a name
        ("11112222333", 1111222233334444),
        ("11112222333…", 1111222233334444),
        ("mnist", 1111222233334444),
        ("9999", 8888000011112222),  # a name goes before the beginning of an id
        ("99990", 9999000011112222),
        ("é", 1234567),
        ("1234", 1234567),  # one that has not ended goes before one that has
        ("1234999", 1234999),
        ("3333", 3333000011112222),
    ],
)
def test_a_run_is_found(connection: Connection, text: str, run_id: int) -> None:
    """By its id, by the beginning of it, or by its name."""
    assert run_called(connection, overview_of(RUNS, []), text).run_id == run_id


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("twice", "'twice' may be one of 2 runs: 1111222255556666 twice, 9999000011112222 twice; give more of the id"),
        ("11112222", "'11112222' may be one of 2 runs: 1111222233334444 mnist, 1111222255556666 twice; "),
        ("777", "there is no run 777 under the prefix 'brokerfl'; see brokerfl runs"),
        ("nothing", "there is no run 'nothing' under the prefix 'brokerfl'; see brokerfl runs"),
        ("", "there is no run '' under the prefix 'brokerfl'"),
        ("…", "there is no run '…' under the prefix 'brokerfl'"),
    ],
)
def test_a_run_that_is_not_meant_alone(connection: Connection, text: str, error: str) -> None:
    """The error lists those that may be meant; three digits name none, for a slip stops a run."""
    with pytest.raises(RunNotFound) as raised:
        run_called(connection, overview_of(RUNS, []), text)
    assert str(raised.value).startswith(error)


def test_a_node_is_found(connection: Connection) -> None:
    """By its id, by the beginning of it, or by its name, online or not."""
    overview = overview_of([], NODES)
    found = [
        node_called(connection, overview, text).info.name for text in ("44440000111", "site-2", "4444000055556666")
    ]
    assert found == ["site-1", "site-2", "site-2"]
    with pytest.raises(NodeNotFound, match=r"'4444' may be one of 2 nodes: site-1 \(4444…\), site-2 \(4444…\)"):
        node_called(connection, overview, "4444")
    with pytest.raises(NodeNotFound, match="there is no node 'site-3'"):
        node_called(connection, overview, "site-3")
