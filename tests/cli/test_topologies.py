"""Sentinels, Clusters and credentials from a function: what the commands say and how they end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from brokerfl.broker.embedded import EmbeddedServer
from tests.apps import eventually
from tests.cli.conftest import Commands, error_of
from tests.conftest import PREFIX, check_keys
from tests.topology.fleets import ClusterFleet, SentinelFleet

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def cluster(redis_binary: Path) -> Iterator[ClusterFleet]:
    with ClusterFleet(redis_binary) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def sentinels(redis_binary: Path) -> Iterator[SentinelFleet]:
    """The servers have one password, the Sentinels another."""
    with SentinelFleet(redis_binary, "s3cr3t", "s3nt1n3l") as fleet:
        yield fleet


def first(fleet: ClusterFleet | SentinelFleet) -> str:
    return fleet.url.partition("://")[2].partition(",")[0]


def test_the_right_url_is_named(commands: Commands, cluster: ClusterFleet, sentinels: SentinelFleet) -> None:
    """A plain URL to a Cluster or a Sentinel, and the other way round, end with 2 and the URL to write."""
    server, sentinel = first(cluster), first(sentinels)
    login = ":s3nt1n3l@"
    cases = {
        f"redis://{server}": f"the server at redis://{server} is a server of a Cluster: write redis+cluster://{server}",
        f"redis://{login}{sentinel}": f"is a Sentinel: write redis+sentinel://{sentinel}/SERVICE",
        f"redis://{login}{sentinel}/3": f"is a Sentinel: write redis+sentinel://{sentinel}/SERVICE",
        f"redis+sentinel://{server}/fl": f"{server} in redis+sentinel://{server}/fl is no Sentinel",
        f"redis+sentinel://{sentinel}/no?sentinel_password=s3nt1n3l": "know no 'no'",
        f"redis+cluster://{server}/1": "a Cluster has only database 0",
    }
    for url in cases:
        commands.start("brokerfl", "runs", "--redis", url)
    for text, process in zip(cases.values(), commands.started, strict=True):
        assert text in error_of(process.ends(2)), process.command
        assert "s3nt1n3l" not in process.text


def test_no_cluster(commands: Commands, redis_url: str) -> None:
    """A server that is in no Cluster ends with 2."""
    url = redis_url.replace("redis://", "redis+cluster://")
    process = commands.run("brokerfl", "runs", "--redis", url, "--prefix", "{fl}", code=2)
    assert "is no server of a Cluster: write redis://" in error_of(process)


def test_logins_behind_sentinel(commands: Commands, sentinels: SentinelFleet) -> None:
    """Servers and Sentinels have logins of their own; what is missing is said, with 11, and no password is shown."""
    hosts, service = sentinels.url.partition("://")[2].split("/")
    right = f"redis+sentinel://:s3cr3t@{hosts}/{service}?sentinel_password=s3nt1n3l"
    assert commands.run("brokerfl", "runs", "--redis", right, "--verbose").out.startswith("no runs;")
    cases = {
        right.partition("?")[0]: "has a login of its own, which the URL gives at its end: /fl?sentinel_password=…",
        right.replace("=s3nt1n3l", "=wr0ng"): "has a login of its own",
        right.replace(":s3cr3t@", ""): "it asks for a password",
        right.replace(":s3cr3t@", ":wr0ng@"): "refuses the login",
    }
    for url in cases:
        process = commands.run("brokerfl", "runs", "--redis", url, "--verbose", code=11)
        assert cases[url] in error_of(process)
        assert not any(secret in process.text for secret in ("s3cr3t", "s3nt1n3l", "wr0ng"))


CREDENTIALS = """
from pathlib import Path

from redis.credentials import CredentialProvider


def token():
    with open("asked", "a") as file:
        file.write("x")
    return "fl", Path("token").read_text()


def alone():
    return "", Path("token").read_text()


class Provider(CredentialProvider):
    def get_credentials(self):
        return token()


def provider():
    with open("made", "a") as file:
        file.write("x")
    return Provider()


def nothing():
    return None


def broken():
    raise OSError("no token today")


number = 1
"""


@pytest.fixture
def guarded(commands: Commands, redis_binary: Path) -> Iterator[redis_py.Redis]:
    """A server whose user fl has the password in the file ``token``; ``commands`` use it."""
    commands.write("creds.py", CREDENTIALS)
    commands.write("token", "first")
    with EmbeddedServer(binary=redis_binary) as server, redis_py.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "fl", "on", ">first", "~*", "&*", "+@all")
        commands.env.update(BROKERFL_REDIS_URL=server.url, BROKERFL_PREFIX=PREFIX)
        yield admin
        commands.kill()
        check_keys(admin)


@pytest.mark.parametrize("function", ["token", "provider"])
def test_credentials_that_change(commands: Commands, guarded: redis_py.Redis, function: str) -> None:
    """A function is asked at each connect: when the password has changed and the connections are cut, a run goes on."""
    commands.env["BROKERFL_CREDENTIAL_PROVIDER"] = f"creds:{function}"
    node = commands.node()
    server = commands.server("--run-config", "nodes=1 until='end'")
    server.wait_for("Round 3: 1 of 1 replied")
    assert sum(each["user"] == "fl" for each in guarded.client_list()) >= 2
    guarded.execute_command("ACL", "SETUSER", "fl", "resetpass", ">second")
    commands.write("token", "second")
    guarded.client_kill_filter(_type="normal", skipme=True)
    last = server.text.count("replied")
    eventually(lambda: server.text.count("replied") > last + 3 or not server.is_running, 30)
    commands.write("end", "")
    server.ends(0)
    assert node.is_running
    assert len((commands.folder / "asked").read_text()) >= 4
    if function == "provider":
        assert len((commands.folder / "made").read_text()) == 2  # once in each process


def test_credentials_that_are_wrong(commands: Commands, guarded: redis_py.Redis) -> None:
    """Each mistake is one line that names the function, and a login in the URL, too, is one too many."""
    url = commands.env["BROKERFL_REDIS_URL"]
    cases = {
        ("creds:nothing", url): (2, "creds:nothing must return user name and password, or a CredentialProvider"),
        ("creds:broken", url): (10, "no login for Redis: --credential-provider creds:broken raised OSError: no token"),
        ("creds:missing", url): (2, "the module creds has no function 'missing'"),
        ("creds:number", url): (2, "the module creds has no function 'number'"),
        ("creds", url): (2, "--credential-provider 'creds' is not module:function"),
        ("none:f", url): (2, "--credential-provider none:f cannot be loaded: there is no module 'none'"),
        ("creds:alone", url.replace("//", "//:p@")): (
            2,
            "has a login, and --credentials or --credential-provider gives another",
        ),
        ("creds:alone", url): (11, "refuses the login"),
    }
    guarded.config_set("requirepass", "other")
    try:
        for name, where in cases:
            commands.start("brokerfl", "runs", "--credential-provider", name, "--redis", where)
        for (code, text), process in zip(cases.values(), commands.started, strict=True):
            assert text in error_of(process.ends(code))
            assert "Is it running?" not in process.text
    finally:
        guarded.execute_command("AUTH", "other")
        guarded.config_set("requirepass", "")


def test_what_to_type_next_has_the_credentials(commands: Commands, guarded: redis_py.Redis) -> None:
    """The lines that say how to resume and stop a detached run name the function and quote the prefix."""
    options = ("--credential-provider", "creds:token", "--prefix", "{fl}")
    server = commands.server("--run-config", "nodes=1", *options)
    server.send(2, until_ended=True)
    assert "--credential-provider creds:token --prefix '{fl}'" in server.text
    run = server.wait_for(r"brokerfl stop (\d+)")
    commands.run("brokerfl", "stop", run, *options)
    guarded.flushall()
