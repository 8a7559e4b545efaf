"""An exception of the app's own signal handler loses nothing, wherever it comes: a notebook's stop button, SIGALRM."""

import sys
from collections.abc import Callable, Collection
from functools import partial
from types import FrameType
from typing import Any

import pytest

from brokerfl.common import Message
from brokerfl.server import Driver
from brokerfl.server import wait as waiting
from tests.apps import driving, eventually, federation, number, number_in
from tests.conftest import Backend
from tests.stage import unsettled

# It may come in a __del__, as in any program: there it ends nothing.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

#: The same on any server.
WITHOUT = ("redis", "redis-tls")

MESSAGES = 2

#: Whose functions and calls are interrupted, in the thread of the app; of a server in the same process only ours.
CODE = {True: ("brokerfl", "redis", "threading"), False: ("brokerfl",)}


class Stop(BaseException):
    """What a signal handler raises."""


class Interruption:
    """Raises `Stop` when CPython may call signal handlers: a function begins, or a call of C ends.

    Args:
        moment: which of them, from 0, counted in the ``code`` that this thread runs.
        code: names of packages.
    """

    def __init__(self, moment: int, code: Collection[str]) -> None:
        self.left = moment
        self._code = code

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_return") and frame.f_globals.get("__name__", "").split(".")[0] in self._code:
            self.left -= 1
            if self.left < 0:
                sys.setprofile(None)
                raise Stop

    @property
    def came(self) -> bool:
        return self.left < 0


def interrupted(moment: int, code: Collection[str], action: Callable[[], Any]) -> bool:
    """Do something until the moment; return whether it came."""
    interruption = Interruption(moment, code)
    sys.setprofile(interruption)
    try:
        action()
    except Stop:
        pass
    finally:
        sys.setprofile(None)
    return interruption.came


def iterate(driver: Driver, ids: list[str], found: list[Message]) -> None:
    """The loop of an app."""
    for reply in driver.replies(ids):
        found.append(reply)


def pull(driver: Driver, ids: list[str], found: list[Message]) -> None:
    """An app that polls."""
    for _ in range(3):
        found += driver.pull_messages(ids)


@pytest.mark.timeout(300)  # hundreds of rounds, each with a profiler
@pytest.mark.parametrize("collect", [iterate, pull])
def test_no_reply_is_lost(
    backend: Backend,
    collect: Callable[[Driver, list[str], list[Message]], None],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The exception comes at some moments, others each day; the next call yields what is left."""
    step = 1 if request.config.option.every_accident else 31 if backend.is_real else 7
    monkeypatch.setattr(waiting, "SWEEP", 0.05)  # what was interrupted is read by the next sweep
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        outbox = driver.connection.keys.outbox(node, driver.run.run_id)
        moment, came = request.config.option.seed % step, True
        while came:
            batch = [driver.create_message(number(each), "train", node, str(moment)) for each in range(MESSAGES)]
            ids = driver.push_messages(batch)
            eventually(lambda: backend.admin.xlen(outbox) >= MESSAGES)
            found: list[Message] = []
            came = interrupted(moment, CODE[backend.is_real], partial(collect, driver, ids, found))
            found += driver.replies(ids, timeout=20)
            assert sorted(map(number_in, found)) == list(range(MESSAGES)), f"at moment {moment}"
            driver.checkpoint()
            driver.pull_messages([])
            assert unsettled(driver) == 0, f"at moment {moment}"
            moment += step
        assert moment > 100


@pytest.mark.parametrize("pooled", [True, False])
def test_no_answer_is_taken_for_another(backend: Backend, pooled: bool) -> None:
    """The exception comes at each moment of a command in turn; the next commands get their own answers."""
    if not backend.is_real:
        pytest.skip("fakeredis has no sockets")
    connection = backend.by_hand()

    def echo(text: str) -> Any:
        return connection.redis.echo(text) if pooled else connection.sockets.exchange([("ECHO", text)])[0]

    moment = 0
    while interrupted(moment, CODE[True], partial(echo, f"{moment}")):
        assert [echo(each) for each in "ab"] == [b"a", b"b"], f"at moment {moment}"
        moment += 1
    assert moment > 20
