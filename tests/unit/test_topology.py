"""What Sentinels and servers of a Cluster answer, and what follows from it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    ExecAbortError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from brokerfl.broker.failure import astray, translate
from brokerfl.broker.topology import Cluster, Sentinels
from brokerfl.broker.url import Address, parse_url
from brokerfl.common import ConfigError, InsecureURL, RedisRefuses, RedisUnreachable

Answers = dict[str, Any]


def asker(answers: Answers, asked: list[str] | None = None) -> Callable[[Address, Sequence[Any]], Any]:
    """Answers by host."""

    def ask(address: Address, command: Sequence[Any]) -> Any:
        if asked is not None:
            asked.append(address[0])
        answer = answers[address[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


def sentinels(answers: Answers, asked: list[str] | None = None, *, insecure: bool = True) -> Sentinels:
    return Sentinels(parse_url(f"redis+sentinel://{','.join(answers)}/main", insecure=insecure), asker(answers, asked))


def cluster(answers: Answers, *, insecure: bool = True) -> Cluster:
    return Cluster(parse_url(f"redis+cluster://{','.join(answers)}", insecure=insecure), asker(answers))


DOWN = ConnectionError("refused")


def test_the_first_sentinel_that_knows_is_believed() -> None:
    """One that is down, and one that does not know the service, are passed over; the next time it is asked first."""
    asked: list[str] = []
    found = sentinels({"a": DOWN, "b": None, "c": [b"p", b"1"], "d": [b"q", b"2"]}, asked)
    assert found.find().primary_of("k") == ("p", 1)
    assert asked == ["a", "b", "c"]
    asked.clear()
    found.find()
    assert asked == ["c"]


def test_a_sentinel_without_a_host_names_its_own() -> None:
    """The empty host is the one that was asked."""
    assert sentinels({"a": [b"", b"1"]}).find().primary_of("k") == ("a", 1)


def test_why_no_sentinel_answers() -> None:
    """What somebody has to change is said first: a service that nobody knows, a server that is no Sentinel, a login."""
    for answers, error, text in (
        ({"a": DOWN, "b": None}, ConfigError, "know no 'main'"),
        ({"a": DOWN, "b": ResponseError("unknown command 'SENTINEL'")}, ConfigError, "b:26379 in .* is no Sentinel"),
        ({"a": DOWN, "b": AuthenticationError("NOAUTH")}, AuthenticationError, "b:26379 has a login of its own"),
        ({"a": DOWN, "b": DOWN}, ConnectionError, r"no Sentinel answers \(a:26379: refused; b:26379: refused\)"),
    ):
        with pytest.raises(error, match=text):
            sentinels(answers).find()


def test_slots_by_key() -> None:
    """Each key has the primary of its slot; the hash tag decides; a slot that nobody has is None."""
    rows = [[0, 5460, [b"a", 1, b"id"], [b"r", 9, b"id"]], [5461, 10922, [b"b", 2, b"id"]]]
    found = cluster({"a": rows}).find()
    assert found.primary_of("bar") == ("a", 1)  # 5061
    assert found.primary_of("x:{bar}:y{foo}") == ("a", 1)
    assert found.primary_of("hello") == ("a", 1)  # 866
    assert found.primary_of("foo") is None  # 12182
    assert found.primaries == {("a", 1), ("b", 2)}


def test_a_server_that_does_not_know_its_host() -> None:
    """A host that is missing or empty is the one that was asked; "?" has an IP address, or cannot be reached."""
    for host, rest, expected in (
        (None, [], "a"),
        (b"", [], "a"),
        (b"?", [b"id", [b"ip", b"10.0.0.1"]], "10.0.0.1"),
        (b"?", [b"id", {b"ip": b"10.0.0.1"}], "10.0.0.1"),
        (b"host.example.org", [b"id", [b"ip", b"10.0.0.1"]], "host.example.org"),
    ):
        assert cluster({"a": [[0, 16383, [host, 7, *rest]]]}).find().primary_of("k") == (expected, 7)
    assert cluster({"a": [[0, 16383, [b"?", 7, b"id"]]]}).find().primary_of("k") is None


def test_known_servers_are_asked_too() -> None:
    """When all hosts of the URL are gone, the servers that they named still answer."""
    answers: Answers = {"a": [[0, 16383, [b"b", 1, b"id"], [b"c", 1, b"id"]]]}
    found = cluster(answers)
    found.find()
    answers.update(a=DOWN, b=DOWN, c=[[0, 16383, [b"c", 1, b"id"]]])
    assert found.find().primary_of("k") == ("c", 1)


def test_all_servers_are_found_while_one_is_down() -> None:
    """Whoever is asked first need not answer; one that has no data yet is there too, one that nobody has met is not."""
    slots = [[0, 16383, [b"b", 1, b"id"], [b"a", 1, b"id"]]]
    rows = b"1 b:1@2 master -\n2 a:1@2 slave,fail 1\n3 c:1@2 slave 1\n4 d:1@2 handshake -\n"
    for down in ("a", "b"):

        def ask(address: Address, command: Sequence[Any], down: str = down) -> Any:
            if address[0] == down:
                raise DOWN
            return slots if command[1] == "SLOTS" else rows

        url = parse_url("redis+cluster://a:1,b:1", insecure=True)
        assert Cluster(url, ask).servers() == {("a", 1), ("b", 1), ("c", 1)}


def test_a_server_that_refuses_to_say_who_is_there() -> None:
    """A right is missing, and that is said: it does answer."""

    def ask(address: Address, command: Sequence[Any]) -> Any:
        if command[1] == "SLOTS":
            return [[0, 16383, [b"a", 1, b"id"], [b"b", 1, b"id"]]]
        raise DOWN if address[0] == "b" else NoPermissionError("no permissions to run 'cluster|nodes'")

    with pytest.raises(NoPermissionError, match="nodes"):
        Cluster(parse_url("redis+cluster://a:1", insecure=True), ask).servers()


def test_a_server_that_is_in_no_cluster() -> None:
    """The right URL is named."""
    with pytest.raises(ConfigError, match=r"a:6379 in .* is no server of a Cluster: write redis://"):
        cluster({"a": ResponseError("This instance has cluster support disabled")}).find()


def test_what_is_announced_may_be_another_machine() -> None:
    """Plain text to a machine that only the answer names is refused as if the URL named it."""
    rows = [[0, 16383, [b"10.0.0.1", 1, b"id"]]]
    with pytest.raises(InsecureURL, match=r"10\.0\.0\.1, which its Cluster names"):
        cluster({"localhost": rows}, insecure=False).find()
    with pytest.raises(InsecureURL, match=r"10\.0\.0\.1, which its Sentinels name"):
        sentinels({"localhost": [b"10.0.0.1", b"1"]}, insecure=False).find()


ASTRAY = (
    ReadOnlyError("You can't write against a read only replica."),
    MovedError("866 127.0.0.1:7001"),
    MovedError("866 :7001"),
    AskError("866 127.0.0.1:7001"),
    TryAgainError("Multiple keys request during rehashing of slot"),
    ClusterDownError("Hash slot not served"),
    BusyLoadingError("Redis is loading the dataset in memory"),
    ExecAbortError("Transaction discarded because of: READONLY You can't write against a read only replica."),
    ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
)


@pytest.mark.parametrize("error", ASTRAY, ids=lambda error: f"{type(error).__name__} {error}"[:40])
def test_answers_of_a_server_that_is_not_the_one_to_ask(error: Exception) -> None:
    """Each is told from others, and means to wait, also in a pipeline that watched something."""
    found = astray(error)
    assert found is not None
    assert isinstance(translate(found, "redis+cluster://h"), RedisUnreachable)


@pytest.mark.parametrize(
    "error",
    [
        ResponseError("UNBLOCKED the stream key no longer exists"),
        ResponseError("NOGROUP No such key"),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        ExecAbortError("Transaction discarded because of previous errors."),
        ExecAbortError("Transaction discarded because of: NOPERM this user has no permissions"),
        AuthenticationError("WRONGPASS"),
        ConnectionError("READONLY"),
    ],
    ids=str,
)
def test_answers_of_the_server_to_ask(error: Exception) -> None:
    """These are answers like any other."""
    assert astray(error) is None


def test_a_replica_has_two_meanings() -> None:
    """A server that was named has to be named anew; one that was found is looked for anew."""
    error = astray(ASTRAY[0])
    assert error is not None
    for url, text in (
        ("redis://h", "name its primary, or promote it"),
        ("redis+sentinel://h/m", "looking for the new"),
    ):
        meaning = translate(error, url)
        assert isinstance(meaning, RedisRefuses)
        assert text in str(meaning)
