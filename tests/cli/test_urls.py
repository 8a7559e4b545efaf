"""Where Redis is: what names it, what a URL may hold, and that a password is never shown."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis as redis_py

from brokerfl.broker.embedded import EmbeddedServer
from tests.cli.conftest import Commands, Process, error_of
from tests.conftest import PREFIX, check_keys

pytestmark = pytest.mark.timeout(180)

#: Of characters that a URL needs quoted.
PASSWORD = "s3cr3t/?#@[:]%"
QUOTED = quote(PASSWORD, safe="")

#: No part of a password longer than two characters may be seen.
PART = re.compile("s3c|3cr|cr3|r3t")


@pytest.fixture(scope="module")
def guarded(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port and the socket of a server with the password, and a user "fl" who has it too."""
    socket = tmp_path_factory.mktemp("s") / "s"
    with EmbeddedServer(options=("--requirepass", PASSWORD, "--unixsocket", str(socket))) as server:
        with redis_py.Redis(port=server.port, password=PASSWORD) as admin:
            admin.execute_command("ACL", "SETUSER", "fl", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        yield server.port, socket


URLS = {
    "password": ("redis://:{password}@127.0.0.1:{port}", "redis://:***@127.0.0.1:{port}", 0),
    "user and database": ("redis://fl:{password}@127.0.0.1:{port}/3", "redis://fl:***@127.0.0.1:{port}/3", 3),
    "socket": ("unix://:{password}@{socket}", "unix://:***@{socket}", 0),
    "all in parameters": (
        "unix://{socket}?username=fl&password={password}&db=2",
        "{socket}?username=fl&password=***&db=2",
        2,
    ),
}


@pytest.mark.parametrize(("url", "shown", "database"), URLS.values(), ids=URLS)
def test_a_run_over_each_kind_of_url(
    commands: Commands, guarded: tuple[int, Path], url: str, shown: str, database: int
) -> None:
    """Node and ServerApp do a run in that database as that user; with --verbose too they show *** for the password."""
    port, socket = guarded
    with redis_py.Redis(port=port, password=PASSWORD, db=database) as admin:
        admin.flushall()
        commands.env.update(
            BROKERFL_REDIS_URL=url.format(password=QUOTED, port=port, socket=socket), BROKERFL_PREFIX=PREFIX
        )
        node = commands.node("--verbose")
        server = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1", "--verbose")
        assert "Round 1: 1 of 1 replied" in server.text
        assert shown.format(port=port, socket=socket) in node.text
        assert not PART.search(node.text + server.text)
        assert admin.exists(f"{PREFIX}:id")
        commands.kill()
        check_keys(admin)


def refused(commands: Commands, *urls: str) -> list[Process]:
    return [commands.start("brokerfl", "runs", "--verbose", "--redis", url) for url in urls]


def test_a_wrong_login_is_refused(commands: Commands, guarded: tuple[int, Path]) -> None:
    """A wrong password, a wrong user and no password end with 11 and one line without the password."""
    place = f"127.0.0.1:{guarded[0]}"
    for process in refused(
        commands, f"redis://:s3cr3t@{place}", f"redis://nobody:{QUOTED}@{place}", f"redis://{place}"
    ):
        assert "refuses the login: " in error_of(process.ends(11))
        assert not PART.search(process.text)
    assert f"redis://:***@{place} refuses the login" in error_of(commands.started[0])
    assert "asks for a password" in error_of(commands.started[2])


def test_errors_hide_the_password(commands: Commands) -> None:
    """No Redis, a URL that is refused, a wrong scheme: the line has *** where the password was."""
    place = f"fl:{QUOTED}@127.0.0.1:1"
    for process, code in zip(
        refused(
            commands, f"redis://{place}", f"rediss://{place}", f"http://{place}", f"unix:///none?password={QUOTED}",
            f"redis://fl:{QUOTED}@redis.example.org",
        ),
        (10, 10, 2, 10, 15),
        strict=True,
    ):  # fmt: skip
        assert "***" in error_of(process.ends(code))
        assert not PART.search(process.text)


def test_a_url_that_cannot_be_read_hides_the_password(commands: Commands) -> None:
    """A password with characters that must be quoted, a wrong scheme or port: it ends with 2, showing no part of it."""
    place = "@127.0.0.1:1"
    for process in refused(
        commands, f"redis://:s3cr3t/s3cr3t{place}", f"redis://:s3cr3t#s3cr3t{place}", f"redis://:s3cr3t?s3cr3t{place}",
        f"redis://fl:1/s3cr3t{place}", f"redis://fl:1#s3cr3t{place}", f"redis://:s3cr3t[{place}",
        f"fl:s3cr3t{place}", f"redis:/fl:s3cr3t{place}", f"redis://fl:s3cr3t{place}x",
    ):  # fmt: skip
        assert "***" in error_of(process.ends(2))
        assert not PART.search(process.text)


#: Ports at which nobody listens tell which URL was taken.
TYPED, TYPED_FILE, URL_VARIABLE, FILE_VARIABLE = (f"redis://127.0.0.1:{port}" for port in (1, 2, 3, 4))


def test_what_is_typed_wins(commands: Commands) -> None:
    """The URL is that of --redis, else of --redis-file, else of BROKERFL_REDIS_URL_FILE, else of BROKERFL_REDIS_URL."""
    typed_file = str(commands.write("typed", TYPED_FILE + "\n"))
    file_variable = str(commands.write("variable", FILE_VARIABLE))
    url, file = {"BROKERFL_REDIS_URL": URL_VARIABLE}, {"BROKERFL_REDIS_URL_FILE": file_variable}
    gone = {"BROKERFL_REDIS_URL_FILE": "gone"}
    cases: list[tuple[str, tuple[str, ...], dict[str, str]]] = [
        (TYPED, ("--redis", TYPED), url | file),
        (TYPED, ("--redis", TYPED), url | gone),
        (TYPED_FILE, ("--redis-file", typed_file), url | file),
        (TYPED_FILE, ("--redis-file", typed_file), url | gone),
        (FILE_VARIABLE, (), url | file),
        (URL_VARIABLE, (), url),
    ]
    for _, options, env in cases:
        commands.start("brokerfl", "runs", *options, **env)
    for (expected, *_), process in zip(cases, commands.started, strict=True):
        assert f"Error: Redis at {expected} does not answer" in error_of(process.ends(10)), process.command


def test_a_file_that_holds_no_url(commands: Commands) -> None:
    """A file that is missing, empty, has two URLs or is no text ends with 2 and one line that names it."""
    commands.write("empty", "\n")
    commands.write("two", f"{TYPED}\n{URL_VARIABLE}\n")
    commands.write("binary", "").write_bytes(b"\xff\xfe\x00")
    lines = {
        "missing": "the URL file missing cannot be read: No such file or directory",
        "empty": "the URL file empty must hold one URL and nothing else",
        "two": "the URL file two must hold one URL and nothing else",
        "binary": "the URL file binary cannot be read: not text",
    }
    for name in lines:
        commands.start("brokerfl", "runs", "--redis-file", name)
    for line, process in zip(lines.values(), commands.started, strict=True):
        assert error_of(process.ends(2)) == f"Error: {line}"


def test_a_file_with_a_byte_order_mark(commands: Commands) -> None:
    """An editor's mark before the URL is no part of it."""
    commands.write("marked", "").write_bytes(b"\xef\xbb\xbf" + f"{TYPED}\r\n".encode())
    process = commands.run("brokerfl", "runs", "--redis-file", "marked", code=10)
    assert f"Error: Redis at {TYPED} does not answer" in error_of(process)


def test_two_urls_are_one_too_many(commands: Commands) -> None:
    """--redis together with --redis-file ends with 2: nobody can tell which was meant."""
    process = commands.run("brokerfl", "runs", "--redis", TYPED, "--redis-file", "client.py", code=2)
    assert error_of(process) == "Error: --redis and --redis-file both say where Redis is: give only one"
