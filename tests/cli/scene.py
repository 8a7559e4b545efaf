"""A federation as operators see it: a run that a node holds up, one without a ServerApp, one that has ended."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from brokerfl.broker.node_info import STATUS
from brokerfl.view import watch
from brokerfl.wire.status import Awaited, Doing, NodeStatus, Phase, RunStatus, encode_status
from tests.apps import driving, federation
from tests.cli.conftest import DEADLINE
from tests.conftest import Backend
from tests.stage import push_numbers, start

#: What a stranger may call a node, to see what a page makes of it.
HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script>\\\n\"'"

#: Half of a character, which JSON can write and UTF-8 cannot.
HALF = "\ud800"


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """A busy machine is no Redis that is away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "_PATIENCE", DEADLINE)
        yield


@dataclass(frozen=True)
class Scene:
    """The ids of all that is there."""

    stuck: int
    detached: int
    ended: int
    node: int


@contextmanager
def scene(backend: Backend, name: str = "site-9") -> Iterator[Scene]:
    """All of it, for as long as the block lasts; the node has this name."""
    with federation(backend, nodes=1) as made, driving(backend, run_config={"lr": 0.1, "odd": math.nan}) as driver:
        gone, over = start(backend), start(backend)
        gone.detach()
        over.end()
        [node] = made.nodes
        push_numbers(driver, node, 1, 2)
        keys, now, run_id = driver.connection.keys, driver.connection.read_time(), driver.run.run_id
        status = NodeStatus(
            now, now, doing=(Doing(run_id, "m", "train", "3", now - 60),), median=3.0, done=7, errors=2, error=name
        )
        info = keys.node_info(node.node_id)
        backend.admin.hset(
            info,
            mapping={"name": name, "labels": json.dumps({"where": name, "odd": HALF}), STATUS: encode_status(status)},
        )
        owed = (Awaited(node.node_id, now - 60),)
        told = RunStatus(
            now, Phase.REPLIES, now - 60, "3", 2, 1, owing=1, awaited=owed, rounds=(4.0, 31.0), memory=4096
        )
        backend.admin.set(keys.run_status(run_id), encode_status(told), xx=True, keepttl=True)
        yield Scene(run_id, gone.run.run_id, over.run.run_id, node.node_id)
        start(backend, resume=gone.run.run_id).end()
