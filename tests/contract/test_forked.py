"""A process that an app forks: it has copies of the parent's locks and sockets, and may use none of them."""

import os
import select
from collections.abc import Callable
from typing import Any

import pytest

from brokerfl.server import Driver
from tests.apps import Counter, driving, number, number_in
from tests.conftest import Backend
from tests.stage import locked, push, serving

#: The same as with the embedded Valkey.
WITHOUT = ("redis",)

#: Seconds until a child counts as hung.
MOST = 20.0

CALLS: dict[str, Callable[[Driver, list[str]], Any]] = {
    "get_node_ids": lambda driver, ids: driver.get_node_ids(),
    "wait_for_nodes": lambda driver, ids: driver.wait_for_nodes(1, timeout=0.0),
    "push_messages": lambda driver, ids: driver.push_messages([]),
    "pull_messages": lambda driver, ids: driver.pull_messages(ids),
    "replies": lambda driver, ids: list(driver.replies(ids)),
    "checkpoint": lambda driver, ids: driver.checkpoint(),
    "cancel_messages": lambda driver, ids: driver.cancel_messages(ids),
    "end": lambda driver, ids: driver.end(),
    "detach": lambda driver, ids: driver.detach(),
}


def in_a_child(action: Callable[[], Any]) -> str:
    """What ``action`` raises in a process that is forked here; "" if nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            action()
            os.write(writing, b"-")
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], MOST)[0]:
            os.kill(child, 9)
            return "it hangs"
        return os.read(reading, 1000).decode().lstrip("-")
    finally:
        os.waitpid(child, 0)
        os.close(reading)


@pytest.mark.parametrize("call", CALLS)
def test_a_child_can_do_nothing_with_a_driver(backend: Backend, call: str) -> None:
    """Every call raises, whatever lock another thread held at the fork; the parent's sockets keep their answers."""
    counter = Counter()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        ids, losses = [push(driver, node.node_id, number(0))], driver.connection.losses
        with locked(driver):
            raised = in_a_child(lambda: CALLS[call](driver, ids))
        assert raised.startswith("RuntimeError('a Driver can be used only in the process that made it"), raised
        [reply] = driver.replies(ids)
        assert number_in(reply) == 1
        assert driver.connection.losses == losses


def test_a_child_cannot_go_on_with_a_loop(backend: Backend) -> None:
    """Nor with an iterator that the parent made; the parent's loop ends with every reply."""
    counter = Counter()
    with serving(backend, counter.app) as node, driving(backend) as driver:
        replies = driver.replies([push(driver, node.node_id, number(0), str(group)) for group in range(3)])
        found = [next(replies)]
        with locked(driver):
            raised = in_a_child(lambda: next(replies))
        assert raised.startswith("RuntimeError('a Driver can be used only"), raised
        assert sorted(map(number_in, [*found, *replies])) == [1, 2, 3]


@pytest.mark.without_rights("nobody may ask for CLIENT ID")
def test_a_child_asks_whether_its_run_is_over(backend: Backend) -> None:
    """context.cancelled() answers, and a child may make a Driver of its own on the same connection."""
    with driving(backend) as driver:
        with locked(driver):
            assert in_a_child(lambda: driver.context.cancelled() and 1 / 0) == ""
        if not backend.is_real:
            return

        connection = driver.connection
        mine = connection.sockets.exchange([("CLIENT", "ID")])

        def run() -> None:
            assert connection.sockets.exchange([("CLIENT", "ID")]) != mine
            Driver(connection, "server:app").end()

        assert in_a_child(run) == ""
        driver.checkpoint()
