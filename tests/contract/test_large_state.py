"""A large state is saved as chunks, of which only those that changed are sent, and comes back."""

import pytest

from brokerfl.common import Array, MetricsRecord
from brokerfl.server import Driver
from tests.apps import Seen, driving, federation
from tests.conftest import Backend, check_keys
from tests.stage import chunks_in, chunks_of, cut, kill, layer, layers_in, model, remove_chunks, resumed, start, to_all

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_a_large_state_is_saved_as_chunks(backend: Backend, sent: list[str]) -> None:
    """It shares the chunks of the broadcast of the same arrays, only what changed is sent, and old ones are freed."""
    with federation(backend, Seen().app, nodes=1) as nodes, driving(backend) as driver:
        node, state = nodes.nodes[0].node_id, driver.context.state
        arrays = [layer(1), layer(2)]
        state.parameters_records["p"] = model(*arrays).parameters_records["p"]
        state.metrics_records["m"] = MetricsRecord({"round": 1})
        to_all(driver, [node], model(*arrays))
        assert sorted(sent) == sorted(chunks_of(driver, model(*arrays), state)), "what both have is sent once"
        assert len(sent) == 12
        sent.clear()
        driver.checkpoint()
        assert sent == []
        assert chunks_in(backend) == chunks_of(driver, state), "the broadcast is over, the state needs its layers"
        before = chunks_in(backend)
        state.parameters_records["p"]["0"] = Array(layer(3))
        driver.checkpoint()
        assert sorted(sent) == sorted(chunks_of(driver, state) - before)
        assert len(sent) == 5
        assert chunks_in(backend) == chunks_of(driver, state)
        check_keys(backend.admin)
        state.parameters_records.clear()
        driver.checkpoint()
        assert chunks_in(backend) == set()


def test_a_large_state_comes_back(backend: Backend) -> None:
    """After a resume it is what the last commit saved; the next commits free it when it changed, and lose nothing."""
    former = start(backend)
    former.context.state.parameters_records["p"] = model(layer(1), layer(2)).parameters_records["p"]
    former.checkpoint()
    former.context.state.parameters_records["p"]["0"] = Array(layer(9))
    kill(former)
    second = Driver(backend.connect(), "", None, resume=former.run.run_id, takeover=True)
    assert layers_in(second.context.state) == layers_in(model(layer(1), layer(2)))
    second.checkpoint()
    assert chunks_in(backend) == chunks_of(former, model(layer(1), layer(2))), "it did not change"
    second.context.state.parameters_records["p"]["1"] = Array(layer(3))
    second.checkpoint()
    assert chunks_in(backend) == chunks_of(second, model(layer(1), layer(3)))
    kill(second)
    with resumed(backend, second) as third:
        assert layers_in(third.context.state) == layers_in(model(layer(1), layer(3)))
        third.context.state.parameters_records.clear()
        third.checkpoint()
        assert chunks_in(backend) == set()


def test_a_state_that_redis_forgot_is_written_again(backend: Backend) -> None:
    """A saved state and its chunks that Redis forgot just after the commit are there again after the comparison."""
    former = start(backend)
    former.connection.persists = True
    former.context.state.parameters_records["p"] = model(layer(1)).parameters_records["p"]
    former.checkpoint()
    remove_chunks(backend)
    backend.admin.unlink(former.connection.keys.context(former.run.run_id))
    cut(former)
    former.pull_messages([])
    kill(former)
    with resumed(backend, former) as driver:
        assert layers_in(driver.context.state) == [layer(1).tobytes()]
