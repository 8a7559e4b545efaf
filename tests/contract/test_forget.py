"""Forgetting a node: an operator says that it will not come back."""

import pytest

from brokerfl.broker.forget import forget_node
from brokerfl.broker.keys import MOST_RETENTION, RETENTION
from brokerfl.broker.nodes import Registration
from brokerfl.common import ErrorCode, NodeOnline
from brokerfl.view.overview import read_overview
from brokerfl.view.reasons import NodeState
from tests.apps import Bench, driving, number
from tests.conftest import Backend
from tests.stage import by_hand, push, silent, sweep_soon

WITHOUT = ("redis-tls",)


def states(backend: Backend) -> dict[str, NodeState]:
    return {node.info.name: node.state for node in read_overview(backend.connect()).nodes}


def test_a_named_node_stays_in_the_list(backend: Backend) -> None:
    """As lost, for 30 days, however often somebody looks; its doorbell goes after a day."""
    registration = Registration(backend.connect(), "berlin")
    keys, node = backend.connect().keys, registration.node_id
    for turn in (registration.register, registration.renew):
        turn()
        assert MOST_RETENTION - 60 < backend.admin.pttl(keys.node_info(node)) / 1000 <= MOST_RETENTION
        assert backend.admin.pttl(keys.ctl(node)) / 1000 <= RETENTION
    registration.leave()
    backend.admin.unlink(keys.ctl(node))
    assert states(backend) == states(backend) == {"berlin": NodeState.LOST}


@pytest.mark.with_rights
def test_a_forgotten_node_leaves_nothing_and_owes_nothing(backend: Backend) -> None:
    """Nothing of the registry is left; a run that waits for it gets Error 5 at once; others stay."""
    with driving(backend) as driver:
        gone, stays = silent(backend, "gone"), silent(backend, "stays")
        keys, connection = driver.connection.keys, backend.connect()
        ids = [push(driver, gone, number(1))]
        with pytest.raises(NodeOnline, match=f"node {gone} is online, as process .*: stop it"):
            forget_node(connection, gone)
        assert states(backend).keys() == {"gone", "stays"}
        backend.admin.unlink(keys.node_lease(gone))
        forget_node(connection, gone)
        assert not backend.admin.exists(keys.node_info(gone), keys.ctl(gone), keys.node_runs(gone))
        assert backend.admin.smembers(keys.nodes) == {str(stays).encode()}
        sweep_soon(driver)
        [reply] = driver.replies(ids, timeout=30)
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
        forget_node(connection, gone)


def test_a_forgotten_node_that_comes_back_is_one_as_any_other(backend: Backend) -> None:
    """Also for the run that had contacted it before."""
    bench = Bench()
    with by_hand(backend, bench.app, None, name="berlin") as node, driving(backend) as driver:
        keys = driver.connection.keys
        push(driver, node.node_id, number(1))
        backend.admin.unlink(keys.node_lease(node.node_id))
        forget_node(backend.connect(), node.node_id)
        assert states(backend) == {}
        again = Registration(backend.connect(), "berlin")
        again.register()
        assert states(backend) == {"berlin": NodeState.READY}
        again.leave()
