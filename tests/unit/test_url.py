"""Redis URLs: what each says, which are refused, and that no text shows a password."""

import pytest
from redis.crc import key_slot

from brokerfl.broker.keys import Keys
from brokerfl.broker.url import Kind, masked, parse_url
from brokerfl.common import ConfigError, InsecureURL

READ = {
    "redis://": (Kind.SERVER, (("localhost", 6379),), None, None, 0),
    "redis://127.0.0.1:1/3": (Kind.SERVER, (("127.0.0.1", 1),), None, None, 3),
    "redis://fl:a%2Fb@[::1]:2?db=4": (Kind.SERVER, (("::1", 2),), "fl", "a/b", 4),
    "rediss://:p%40@redis.example.org": (Kind.SERVER, (("redis.example.org", 6379),), None, "p@", 0),
    "unix://:p@/run/a.sock?db=2": (Kind.SOCKET, (("/run/a.sock", 0),), None, "p", 2),
    "unix:///run/a.sock?username=fl&password=p": (Kind.SOCKET, (("/run/a.sock", 0),), "fl", "p", 0),
    "rediss+cluster://fl:p@a,b:7000": (Kind.CLUSTER, (("a", 6379), ("b", 7000)), "fl", "p", 0),
    "redis+cluster://127.0.0.1,[::1]:7000/0": (Kind.CLUSTER, (("127.0.0.1", 6379), ("::1", 7000)), None, None, 0),
    "rediss+sentinel://fl:p@a,b:2,[::1]/main/3": (
        Kind.SENTINEL, (("a", 26379), ("b", 2), ("::1", 26379)), "fl", "p", 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("url", READ)
def test_what_a_url_says(url: str) -> None:
    """Kind, hosts, login and database."""
    found = parse_url(url, insecure=False)
    assert (found.kind, found.hosts, found.username, found.password, found.database) == READ[url]
    assert found.is_tls == url.startswith("rediss")


def test_sentinels_have_a_login_of_their_own() -> None:
    """That of the URL is for the servers: a Sentinel without a password refuses one."""
    found = parse_url("redis+sentinel://fl:p@localhost/main?sentinel_username=s&sentinel_password=q", insecure=False)
    assert (found.service, found.username, found.password) == ("main", "fl", "p")
    assert (found.sentinel_username, found.sentinel_password) == ("s", "q")
    assert found.shown == "redis+sentinel://fl:***@localhost/main?sentinel_username=s&sentinel_password=***"
    assert parse_url("redis+sentinel://fl:p@localhost/main", insecure=False).sentinel_password is None


REFUSED = {
    "redis+sentinel://127.0.0.1": "names no service: write redis\\+sentinel://host/SERVICE",
    "redis+sentinel://127.0.0.1/main/x": "the database 'x' is not a number",
    "redis+sentinel://127.0.0.1,/main": "look at the host and the port",
    "redis+cluster://127.0.0.1/2": "names database 2, but a Cluster has only database 0",
    "redis+cluster://127.0.0.1?db=2": "unknown parameter 'db'; the allowed ones are username, password",
    "redis+cluster://127.0.0.1:1,127.0.0.1:99999": "look at the host and the port",
    "redis://127.0.0.1,127.0.0.2": "look at the host and the port",
    "redis://127.0.0.1?sentinel_password=s3cr3t": "unknown parameter 'sentinel_password'",
    "redis+sentinel://:s3cr3t/s3cr3t@127.0.0.1/main": "in a password write / as %2F",
    "redis+cluster://:s3cr3t@127.0.0.1:1,x@y:z": "look at the host and the port",
    "redis+unix:///a": "must start with redis://",
    "redis:127.0.0.1": "must start with redis://",
}


@pytest.mark.parametrize("url", REFUSED)
def test_what_cannot_be_read(url: str) -> None:
    """One clear text, without the password."""
    with pytest.raises(ConfigError, match=REFUSED[url]) as caught:
        parse_url(url, insecure=True)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("kind", ["", "+sentinel", "+cluster"])
def test_each_host_may_be_another_machine(kind: str) -> None:
    """One that is not this machine is enough for the refusal, which names the scheme that is encrypted."""
    hosts, path = ("h" if not kind else "localhost,127.0.0.2,h"), ("/main" if kind == "+sentinel" else "")
    with pytest.raises(InsecureURL, match=f"Use rediss{kind.replace('+', '.')}://"):
        parse_url(f"redis{kind}://:s3cr3t@{hosts}{path}", insecure=False)
    assert parse_url(f"redis{kind}://{hosts}{path}", insecure=True)
    assert parse_url(f"rediss{kind}://{hosts}{path}", insecure=False)


def test_masks() -> None:
    """Every password is hidden, of a URL that is no URL, too."""
    for url in (
        "redis+cluster://a:s3@b,c",
        "redis+sentinel://h/main?a=b&sentinel_password=s3",
        "x:s3@y",
        "?password=s3",
    ):
        assert "s3" not in masked(url)
        assert "***" in masked(url)


def test_a_prefix_may_have_a_tag() -> None:
    """One, that is not empty: it is what all keys are hashed by."""
    for prefix, tag in (("{fl}", "fl"), ("a:{b.c}-d", "b.c"), ("fl", "")):
        keys = Keys(prefix)
        names = [keys.identity, keys.nodes, keys.runs, keys.ctl(1), keys.inbox(1, 2), keys.meta(2), keys.bell(2)]
        slots = {key_slot(key.encode()) for key in [*names, keys.blob(2, b"d"), *keys.of_run(2)]}
        assert (len(slots) == 1) == bool(tag)
    for prefix in ("", "{}", "a{}b", "{a}{b}", "{a", "a}", "{{a}}", "{a b}", "}a{"):
        with pytest.raises(ConfigError, match="may contain only letters, digits"):
            Keys(prefix)
