"""The proxy does to connections what it says: else the scenarios would prove nothing."""

from collections.abc import Iterator

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError, WatchError
from redis.retry import Retry

from tests.chaos.lab import Lab, eventually


@pytest.fixture
def client(lab: Lab) -> Iterator[redis_py.Redis]:
    """A client behind the proxy, with one connection that works, which repeats nothing by itself."""
    with redis_py.Redis.from_url(lab.proxy.url, socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as made:
        made.ping()
        yield made


def test_a_cut_ends_every_connection(lab: Lab, client: redis_py.Redis) -> None:
    """A WATCH ends with its connection, and a new connection works."""
    with client.pipeline() as pipe:
        pipe.watch("test:x")
        lab.proxy.cut()
        with pytest.raises(WatchError, match="ConnectionError"):
            pipe.get("test:x")
    assert client.ping()


@pytest.mark.parametrize("keep", [0, 1])
def test_a_broken_answer_is_that_of_a_request_that_was_executed(lab: Lab, client: redis_py.Redis, keep: int) -> None:
    """Only the answer to the request that was named is lost, wholly or after some bytes."""
    lab.proxy.break_answer(b"SET", keep)
    assert client.get("test:x") is None
    with pytest.raises(ConnectionError):
        client.set("test:x", "1", px=10_000)
    assert client.get("test:x") == b"1"


def test_what_was_held_arrives_late(lab: Lab, client: redis_py.Redis) -> None:
    """A request that was held reaches the server when it is released, though its client has given up."""
    lab.proxy.hold(b"SET")
    with pytest.raises(TimeoutError):
        client.set("test:x", "1", px=10_000)
    assert client.get("test:x") is None
    lab.proxy.release()
    eventually(lambda: client.get("test:x") == b"1", "it arrives")


def test_what_stalls_neither_answers_nor_ends(lab: Lab, client: redis_py.Redis) -> None:
    """A request on a connection that was there before times out; new connections work."""
    lab.proxy.stall()
    with pytest.raises(TimeoutError):
        client.ping()
    assert client.ping()


def test_a_delay_is_one(lab: Lab, client: redis_py.Redis) -> None:
    """Answers that are held back for longer than a client waits reach it no more, and do when they are not."""
    lab.proxy.delay = 0.3
    with pytest.raises(TimeoutError):
        client.ping()
    lab.proxy.delay = 0.0
    assert client.ping()


def test_down_is_down_until_up(lab: Lab, client: redis_py.Redis) -> None:
    """No connection lives meanwhile, not even a new one."""
    lab.proxy.down()
    for _ in range(2):
        with pytest.raises(ConnectionError):
            client.ping()
    lab.proxy.up()
    assert client.ping()


def test_the_weather_is_bad(lab: Lab, client: redis_py.Redis) -> None:
    """Some of many requests fail, and some of those were executed."""
    lab.proxy.weather = 0.3
    failed = 0
    for _ in range(100):
        try:
            client.incr("test:x")
        except (ConnectionError, TimeoutError):
            failed += 1
    executed = int(lab.admin.getdel("test:x"))
    assert 0 < failed < 100
    assert 100 - failed < executed <= 100
