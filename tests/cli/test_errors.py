"""Errors that a new user makes: each is one clear line, never a traceback of ours, and has its exit code."""

import re

import pytest

from brokerfl.broker.embedded import free_port
from tests.cli.conftest import NO_REDIS, Broker, Commands, error_of, run_id, stand_in

pytestmark = pytest.mark.timeout(180)

NODE = ("brokerfl-node", "client:app")
SERVER = ("brokerfl-server", "server:app")
EVERY = (NODE, SERVER, ("brokerfl", "runs"), ("brokerfl", "nodes"), ("brokerfl", "stop", "12345"))

#: Nothing listens there: what is wrong must be found before.
CLOSED = ("--redis", "redis://127.0.0.1:1")

USAGE = {
    "no app": (("brokerfl-node",), "Missing argument 'APP'"),
    "node config": ((*NODE, "--node-config", "partition"), "--node-config 'partition' cannot be read at 'partition'"),
    "node config's value": (
        (*NODE, "--node-config", "a=[1]"),
        r"--node-config: the value of a is '\[1\]': it must be a boolean, number or string; quote a string",
    ),
    "run config": (
        (*SERVER, "--run-config", "lr = 0.1"),
        "--run-config 'lr = 0.1' cannot be read at 'lr = 0.1': write",
    ),
    "label": ((*NODE, "--label", "berlin"), "--label 'berlin': write key=value, such as site=berlin"),
    "lease": ((*NODE, "--lease", "0"), r"Invalid value for '--lease': 0(\.0)? is not in the range 0.3<=x<=1000000000"),
    **{
        f"{option} {seconds}": ((*command, option, seconds), f"Invalid value for '{option}': ")
        for command, options in (
            (NODE, ("--lease", "--grace")),
            (SERVER, ("--lease", "--retention", "--offline-grace", "--outage-limit")),
        )
        for option in options
        for seconds in ("nan", "inf", "1e18")
    },
    "seed": ((*SERVER, "--run-config", "seed=99999999999999999999999"), "--run-config: seed is 9+, but only integers"),
    "run config's bytes": ((*SERVER, "--run-config", "a='\udcff'"), r"--run-config: 'a': '\\udcff' is not UTF-8"),
    "name's bytes": ((*NODE, "--name", "a\udcff"), r"Invalid value for '--name': 'a\\udcff' is not UTF-8"),
    "label's bytes": ((*NODE, "--label", "a=\udcff"), r"Invalid value for '--label': 'a=\\udcff' is not UTF-8"),
    "app's bytes": (("brokerfl-server", "s\udcff:app"), r"the app 's\\udcff:app' is not UTF-8"),
    "prefix": ((*NODE, "--prefix", "a b"), "the prefix 'a b' may contain only letters, digits"),
    "realm": ((*NODE, "--realm", "1234,567"), "the realm '567' must be four digits, of which the first is not 0"),
    "two realms": ((*SERVER, "--realm", "1234,2345"), "--realm of a ServerApp names one realm: that of its run"),
    "scheme": ((*NODE, "--redis", "http://127.0.0.1"), "the Redis URL http://127.0.0.1 must start with redis://"),
    "no scheme": ((*NODE, "--redis", "localhost:6379"), "the Redis URL localhost:6379 must start with redis://"),
    "port": ((*NODE, "--redis", "redis://127.0.0.1:http"), "the Redis URL redis://127.0.0.1:http cannot be read"),
    "high port": (
        (*NODE, "--redis", "redis://127.0.0.1:99999"),
        "the Redis URL redis://127.0.0.1:99999 cannot be read",
    ),
    "missing certificate": (
        (*NODE, "--ca-cert", "ca.pem"),
        "Invalid value for '--ca-cert': File 'ca.pem' does not exist",
    ),
    "certificate for redis://": (
        (*NODE, *CLOSED, "--cert", "client.py"),
        "certificates are given but redis://127.0.0.1:1 is not a TLS URL: write rediss://",
    ),
    "key alone": (
        (*NODE, "--redis", "rediss://127.0.0.1:1", "--key", "client.py"),
        "--key is given without --cert: mutual TLS needs both",
    ),
    "format": (("brokerfl", "runs", "--format", "xml"), "Invalid value for '--format': 'xml' is not one of"),
    "up's port": (("brokerfl", "up", "--port", "70000"), "Invalid value for '--port': 70000 is not in the range"),
}


def test_an_option_that_cannot_be_used(commands: Commands) -> None:
    """It ends with 2 and one line that names the option and what was wrong with it."""
    started = {what: commands.start(*command) for what, (command, _) in USAGE.items()}
    for what, process in started.items():
        assert re.match(f"Error: {USAGE[what][1]}", error_of(process.ends(2))), what


def test_no_redis_there(commands: Commands) -> None:
    """Every command ends with 10, names the URL and the reason, and says how to start one."""
    url = f"redis://127.0.0.1:{free_port()}"
    for process in [commands.start(*command, "--redis", url) for command in EVERY]:
        assert error_of(process.ends(10)).startswith(f"Error: Redis at {url} does not answer: ")
        assert "Connection refused" in process.err
        assert "`brokerfl up` starts one" in process.err


def test_plain_text_to_another_machine(commands: Commands) -> None:
    """Without --insecure it is refused with 15, before anything is sent; the line says what to do."""
    for process in [commands.start(*command, "--redis", "redis://u:secret@redis.example.org") for command in EVERY]:
        assert error_of(process.ends(15)).startswith(
            "Error: redis://u:***@redis.example.org is plain text to another machine"
        )
        assert "Use rediss://, or pass --insecure" in process.err


def test_loopback_needs_no_insecure(commands: Commands) -> None:
    """Plain text to this machine is tried, with --insecure or without: what it ends with is that nothing listens."""
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "[::1]"):
        commands.start("brokerfl", "runs", "--redis", f"redis://{host}:1", *(["--insecure"] if host[0] == "l" else []))
    for process in commands.started:
        assert "Redis at redis://" in error_of(process.ends(10))


def test_a_right_is_missing(commands: Commands, broker: Broker) -> None:
    """A user whom the server forbids a command ends with 11 and the server's words, at the start or in the run."""
    for name, command in (("no-groups", "xgroup"), ("no-bells", "xread"), ("no-ping", "ping")):
        broker.admin.execute_command("ACL", "SETUSER", name, "on", ">pw", "~*", "&*", "+@all", f"-{command}")
    host = broker.url.partition("//")[2]
    node = commands.run(*NODE, "--redis", f"redis://no-groups:pw@{host}", code=11)
    assert error_of(node).startswith(f"Error: redis://no-groups:***@{host} denies a permission that brokerfl needs: ")
    assert "xgroup" in error_of(node)
    assert "ping" in error_of(commands.run("brokerfl", "runs", "--redis", f"redis://no-ping:pw@{host}", code=11))
    commands.node()
    server = commands.run(*SERVER, "--run-config", "nodes=1", "--redis", f"redis://no-bells:pw@{host}", code=11)
    assert f"Run {run_id(server)} is detached: redis://no-bells:***@{host} denies a permission" in server.err
    assert "Traceback" not in server.text


def test_a_run_that_cannot_be(commands: Commands, broker: Broker) -> None:
    """A run config that no node could read, and a retention that is too long, are one line and 2; there is no run."""
    for option, value, line in (
        ("--run-config", f"prompt='{'x' * 70_000}'", "Error: the run config is too large: a header of 70,0"),
        (
            "--retention",
            "2592001",
            "Error: Invalid value for '--retention': 2592001.0 is not in the range 1.0<=x<=2592000",
        ),
    ):
        assert error_of(commands.run(*SERVER, option, value, code=2)).startswith(line)
    assert commands.run("brokerfl", "runs", "--all", "--format", "json").out == "[]\n"


def bulk(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


OLD = {
    b"HELLO": b"%1\r\n+proto\r\n:3\r\n",
    b"CLIENT": b"-ERR Unknown subcommand or wrong number of arguments for 'SETINFO'\r\n",
    b"PING": b"+PONG\r\n",
    b"INFO": bulk("# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone\r\n"),
}

VERY_OLD = {b"HELLO": b"-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n"}


def test_a_server_that_is_too_old(commands: Commands) -> None:
    """Redis 6.0.16 ends with 13 and one line with its version and the one that is needed."""
    line = "Error: the server at {} is Redis 6.0.16; brokerfl needs 7.0 or newer (or Valkey 7.2)"
    with stand_in(OLD) as url:
        for process in [commands.start(*command, "--redis", url) for command in EVERY]:
            assert error_of(process.ends(13)) == line.format(url)


def test_a_server_from_before_hello(commands: Commands) -> None:
    """Redis 5 does not even know the first command it is sent: 13 too."""
    with stand_in(VERY_OLD) as url:
        process = commands.run("brokerfl", "runs", "--redis", url, code=13)
    assert error_of(process).startswith(f"Error: the server at {url} is older than Redis 6; brokerfl needs 7.0")


def test_a_server_that_is_no_redis(commands: Commands) -> None:
    """A web server on that port is one line, and 2: the URL is wrong."""
    with stand_in(NO_REDIS) as url:
        process = commands.run("brokerfl", "runs", "--redis", url, code=2)
    assert error_of(process).startswith(f"Error: the server at {url} cannot be used: ")


def test_a_database_that_is_not_there(commands: Commands, broker: Broker) -> None:
    """A database number beyond the server's is one line, and 2."""
    process = commands.run("brokerfl", "runs", "--redis", f"{broker.url}/99", code=2)
    assert error_of(process).startswith(f"Error: the server at {broker.url}/99 cannot be used: DB index is out of")


URLS = {
    "database": ("redis://127.0.0.1:1/zero", "the database 'zero' is not a number"),
    "parameter": (
        "redis://127.0.0.1:1/?timeout=3",
        "has the unknown parameter 'timeout'; the allowed ones are db, username",
    ),
    "no socket": ("unix://", "names no socket: write unix:///path/to/redis.sock"),
}


def test_a_url_that_says_what_cannot_be(commands: Commands) -> None:
    """It is refused with 2 instead of being passed over."""
    started = {what: commands.start("brokerfl", "runs", "--redis", url) for what, (url, _) in URLS.items()}
    for what, process in started.items():
        assert URLS[what][1] in error_of(process.ends(2)), what
