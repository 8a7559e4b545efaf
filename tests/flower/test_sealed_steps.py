"""The record of a strategy's steps in a sealed run: resumed by its owner, read by nobody else, and never changed."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from brokerfl.broker.keys import Keys
from brokerfl.common import FrameError
from brokerfl.flower import adapt_client_app
from brokerfl.wire.frame import SIGNATURE
from tests.conftest import PREFIX, Backend, real_backend
from tests.flower.names import HAS_MESSAGE_API, ConfigRecord, MetricRecord, array_of
from tests.monitor import watching
from tests.parties import Parties
from tests.stage import serving

if not HAS_MESSAGE_API:
    pytest.skip("flwr 1.13 has no strategies of the message API", allow_module_level=True)

from tests.flower.lives import Lives, deadly_points, model_of, mortal, nodes_app


@pytest.fixture
def backend(valkey_url: str) -> Backend:
    """A server whose operator can be watched."""
    made = real_backend("valkey", valkey_url)
    made.admin.flushall()
    return made


@pytest.fixture(params=[True, False], ids=["sealed", "signed"])
def parties(request: pytest.FixtureRequest) -> Parties:
    """An owner and three nodes."""
    return Parties("n0", "n1", "n2", seals=request.param)


@pytest.fixture
def lives(backend: Backend, parties: Parties) -> Iterator[Lives]:
    """Nodes that serve the owner's runs."""
    made = Lives(nodes=0)
    made.connect = backend.connect  # type: ignore[method-assign]
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch, deadly_points(patch):
        for number, name in enumerate(parties.nodes):
            options = {"protection": parties.of_node(name), "node_config": {"partition-id": number}}
            stack.enter_context(serving(backend, adapt_client_app(nodes_app(made.executed)), name=name, **options))
        yield made


def telling(grid: Any, context: Any, life: int) -> tuple[Any, Any]:
    """An app whose record has a model, metrics, a config, an attribute and a state, all with words in them."""
    strategy = mortal("FedAdam")(min_available_nodes=3)
    strategy.secret_attribute = ["secret-value"]

    def evaluate(server_round: int, arrays: Any) -> Any:
        strategy.secret_attribute.append(f"secret-value-{server_round}")
        context.state["secret-state"] = ConfigRecord({"secret-key": "secret-text"})
        return MetricRecord({"secret-metric": server_round / 3})

    arrays = model_of(0)
    arrays["large"] = array_of(np.frombuffer(ARRAY.encode() * 10_000, np.float64))
    config = ConfigRecord({"lr": 0.1, "secret-config": "secret-text"})
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3, train_config=config, evaluate_fn=evaluate)
    return result, (strategy.secret_attribute, dict(context.state["secret-state"]))


#: The bytes of two numbers near 0.0001.
ARRAY = "canary!?" * 2

WORDS = {f"secret-{what}" for what in ("state", "text", "key", "metric", "config", "value")} | {
    "secret_attribute",
    ARRAY,
}


def test_a_run_goes_on_by_its_record(lives: Lives, backend: Backend, parties: Parties) -> None:
    """Killed and resumed it ends as if nothing had happened; the operator of Redis sees no word of a sealed one."""
    undisturbed = lives.live(telling, protection=parties.of_owner)
    with watching(backend.admin) as spy:
        run = lives.die(telling, (3, "before aggregate_train#0"), protection=parties.of_owner)
        assert backend.admin.hlen(Keys(PREFIX).steps(run)) > 5
        spy.look()
        assert lives.end(telling, run, protection=parties.of_owner) == undisturbed
    assert spy.shown(*WORDS) == (set() if parties.seals else WORDS)


def test_a_record_that_was_changed_is_refused(lives: Lives, backend: Backend, parties: Parties) -> None:
    """One byte of any field, or of any chunk: an error says so, and the run stays as it is."""
    run = lives.die(telling, (3, "before aggregate_train#0"), protection=parties.of_owner)
    admin, key = backend.admin, Keys(PREFIX).steps(run)

    def refused(error: type[Exception], why: str) -> None:
        with pytest.raises(error, match=why):
            lives.refuse(telling, run, protection=parties.of_owner)

    fields = admin.hgetall(key)
    for name, data in fields.items():
        admin.hset(key, name, changed(data))
        refused(FrameError, f"the steps of run {run} cannot be read: its signature is not that of its owner: .*changed")
        admin.hset(key, name, data)
    name = max(fields, key=lambda each: len(fields[each]))
    admin.hdel(key, name)
    refused(FrameError, "was changed")
    admin.hset(key, changed(name), fields[name])
    refused(FrameError, "was changed")
    admin.delete(key)
    admin.hset(key, mapping={name: data for name, data in fields.items() if name != SIGNATURE})
    refused(FrameError, "it is not signed")
    admin.delete(key)
    admin.hset(key, mapping=fields)
    for chunk in admin.scan_iter(f"{PREFIX}:blob:{run}:*"):
        data = admin.get(chunk)
        admin.set(chunk, changed(data), keepttl=True)
    refused(FrameError, f"run {run} cannot go on where it was: its record cannot be read .chunk")


def changed(data: bytes) -> bytes:
    """Another byte at the end."""
    return data[:-1] + bytes([data[-1] ^ 1])
