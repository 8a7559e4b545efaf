"""What a ServerApp does atomically is divided by the slots it touches, so that a Cluster can divide it."""

import re
from collections.abc import Iterable
from typing import Any

import pytest

from brokerfl.broker.fence import Fence, Slot, Transaction
from brokerfl.broker.sockets import Command, commands_of
from brokerfl.common import MetricsRecord
from tests.apps import Counter, driving, eventually
from tests.conftest import Backend
from tests.stage import (
    LAYER,
    Streams,
    ask,
    cut,
    distrust,
    in_ledger,
    layer,
    model,
    push,
    remove_chunks,
    serving,
    silent,
    to_all,
)

#: The commands are the same wherever they go; a prefix of one slot would hide what it is about.
WITHOUT = ("redis", "redis-tls", "sentinel", "cluster", "valkey-cluster")

pytestmark = pytest.mark.usefixtures("small_chunks")

TAG = re.compile(r"{(.*)}")


def keys_of(command: Command) -> Iterable[str]:
    """The keys that a command touches."""
    name = str(command[0])
    if name == "UNLINK":
        return [str(key) for key in command[1:]]
    return [str(command[2 if name.startswith("XGROUP") and " " not in name else 1])]


def slot_of(key: str) -> Slot:
    """Whose key it is: the hash tag says so."""
    tag = TAG.search(key)
    if tag is None or re.fullmatch(r"[0-9a-f]{64}", tag[1]):
        return Slot.OWN
    return Slot.RUN if tag[1].startswith("run:") else Slot.NODE


def test_each_step_touches_the_slots_that_it_names(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole life of a run, with large contents, a state, a cancellation, a Redis that forgets, and its end."""
    seen: dict[str, set[Slot]] = {}
    execute = Fence.execute

    def spy(fence: Fence, transaction: Transaction, **options: Any) -> list[Any]:
        for slot, step in transaction.steps:
            pipe = fence._connection.sockets.pipe()
            step(pipe)
            touched = {slot_of(key) for command in commands_of(pipe) for key in keys_of(command)}
            assert touched <= {slot}, f"{transaction.name}: a step in {slot} touches {touched}"
            seen.setdefault(transaction.name, set()).update(touched)
        return execute(fence, transaction, **options)

    monkeypatch.setattr(Fence, "execute", spy)
    quiet = silent(backend)
    with serving(backend, Counter().app) as node, driving(backend) as driver:
        streams = Streams(backend, driver, node)
        to_all(driver, [node.node_id], model(layer(1)))
        driver.context.state.metrics_records["m"] = MetricsRecord({"round": 1})
        ask(driver, node, LAYER)
        eventually(lambda: streams.lengths()[1] > 0)
        kept = push(driver, quiet, model(layer(2)), group="2")
        cancelled = push(driver, quiet, model(layer(3)), group="2")
        driver.cancel_messages([cancelled])
        backend.admin.unlink(driver.connection.keys.inbox(quiet, driver.run.run_id))
        remove_chunks(backend)
        distrust(driver)
        cut(driver)
        driver.pull_messages([])
        assert kept in in_ledger(backend, driver)
    assert {name for name in seen if seen[name]} >= {"upload", "commit", "verdict", "restore", "send", "delete"}
    assert seen["commit"] == seen["delete"] == seen["restore"] == {Slot.RUN, Slot.NODE, Slot.OWN}
