"""What a ServerApp does atomically is divided by the slots it touches, so that a Cluster can divide it."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from brokerfl.broker import sockets
from brokerfl.broker.connection import Pipeline
from brokerfl.broker.fence import Fence, Transaction
from brokerfl.broker.sockets import Command, commands_of
from brokerfl.common import MetricsRecord
from tests.apps import Counter, driving, eventually, number
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


def tag_of(key: str) -> str:
    """The hash tag of a key, or the key itself: what its slot is computed from."""
    tag = TAG.search(key)
    return tag[1] if tag else key


def tags_of(build: Callable[[Pipeline], Any], fence: Fence) -> set[str]:
    """The tags of all keys that commands touch."""
    pipe = fence._connection.sockets.pipe()
    build(pipe)
    return {tag_of(key) for command in commands_of(pipe) for key in keys_of(command)}


def test_each_transaction_touches_one_slot_and_each_echo_its_own(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole life of a run, with large contents, a state, a cancellation, a Redis that forgets, and its end."""
    seen, echoed = set(), set()
    execute = Fence.execute

    def spy(fence: Fence, transaction: Transaction, **options: Any) -> list[Any]:
        assert tags_of(transaction.run, fence) <= {f"run:{fence._run_id}"}, transaction.name
        for key, echo in transaction.echoes:
            assert tags_of(echo, fence) == {tag_of(key)}, transaction.name
            echoed.add(transaction.name)
        seen.add(transaction.name)
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
    assert seen >= {"upload", "commit", "verdict", "restore", "send", "close", "delete"}
    assert echoed >= {"commit", "restore", "send", "close", "delete"}


def test_no_command_has_more_than_a_thousand_arguments(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some managed services refuse longer ones, and everybody else waits for them."""
    longest, send = [0], sockets._send

    def spy(socket: Any, commands: list[Command]) -> Any:
        longest[0] = max(longest[0], *(len(command) for command in commands))
        return send(socket, commands)

    monkeypatch.setattr(sockets, "_send", spy)
    node = silent(backend)
    with driving(backend) as driver:
        messages = [driver.create_message(number(n), "train", node, "1") for n in range(1200)]
        ids = driver.push_messages(messages)
        driver.cancel_messages(ids)
        assert len(driver.pull_messages(ids)) == 1200
        driver.checkpoint()
        assert in_ledger(backend, driver) == set()
    assert 500 < longest[0] <= 1000
