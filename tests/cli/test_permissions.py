"""The users that the documentation shows: what brokerfl needs is allowed, and who has no password has nothing."""

import json
import re
import signal
from pathlib import Path

import pytest
import redis as redis_py

from brokerfl.broker.embedded import EmbeddedServer
from tests.chaos.lab import APPS, expected
from tests.cli.conftest import Commands, error_of, run_id

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("valkey_url")]

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("file", ["docs/configuration.md", "docker-compose.yml"])
def test_the_users_that_are_shown(commands: Commands, file: str) -> None:
    """With the password, a node, a run and the operator's commands work; without one, nothing is answered."""
    found = re.findall(r"\buser (\w+) (on|off)\b([^\n\"]*)", (ROOT / file).read_text())
    users = {name: (state, *re.sub(r">\S+", ">secret", rules).split()) for name, state, rules in found}
    nobody = users.pop("default")
    [(name, rules)] = users.items()
    options = ("--user", "default", *nobody, "--user", name, *rules)
    with EmbeddedServer(options=options) as server:
        commands.env["BROKERFL_REDIS_URL"] = server.url.replace("//", f"//{name}:secret@")
        node = commands.node("--name", "berlin")
        run = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1 rounds=2")
        run.wait_for("Round 2: 1 of 1 replied")
        commands.run("brokerfl", "nodes").wait_for("berlin")
        assert "WARNING" not in node.text + run.text
        assert "password" in error_of(commands.run("brokerfl", "runs", BROKERFL_REDIS_URL=server.url, code=11))
        node.kill()


@pytest.mark.parametrize("file", ["docs/configuration.md", "docker-compose.yml", "docker-compose.cluster.yml"])
def test_a_restart_keeps_what_was_written(file: str, redis_binary: Path, tmp_path: Path) -> None:
    """Redis 7 loads transactions of its append-only file with the rights of `default`, though nobody can log in so."""
    [nobody] = re.findall(r"\buser default (off\b[^\n\"]*)", (ROOT / file).read_text())
    options = ("--user", "default", *nobody.split(), "--user", "fl", "on", ">secret", "~*", "+@all")
    for kept in ([None, None], [b"1", b"2"]):
        with EmbeddedServer(data=tmp_path / "data", binary=redis_binary, options=options) as server:
            with redis_py.Redis(port=server.port, username="fl", password="secret") as client:
                assert client.mget("one", "two") == kept
                with client.pipeline(transaction=True) as pipe:
                    pipe.set("one", 1).set("two", 2).execute()
            with redis_py.Redis(port=server.port) as client, pytest.raises(redis_py.AuthenticationError):
                client.ping()


def test_the_commands_that_are_listed(commands: Commands) -> None:
    """docs/deploy.md names what a Redis must be able to do: with these commands and no others, everything works.

    A run with large contents is detached and resumed, another one is stopped.
    """
    page = (ROOT / "docs/deploy.md").read_text()
    section = page.partition("## What a Redis must be able to do")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", section, re.MULTILINE)
    texts = [re.sub(r"\(.*?\)", "", text) for name, text in rows if name != "nothing that matters"]
    names = re.findall(r"\b[A-Z]{3,}(?: (?:CREATE|SLOTS|STREAM))?\b", " ".join(texts))
    rules = ["on", ">secret", "~brokerfl:*", "-@all", *(f"+{name.lower().replace(' ', '|')}" for name in names)]
    with EmbeddedServer(options=("--user", "fl", *rules)) as server:
        commands.env.update(BROKERFL_REDIS_URL=server.url.replace("//", "//fl:secret@"), BROKERFL_APP_DIR=str(APPS))
        node = commands.start("brokerfl-node", "client:app", "--name", "n0", "--node-config", "name=n0")
        config = f"nodes=1 payload=200000 pause=3 rounds=6 result='{commands.folder / 'result'}'"
        run = commands.start("brokerfl-server", "server:app", "--run-config", config)
        run.wait_for("Run .* started")
        run.wait_for("3 replies are in the books")
        run.send(signal.SIGTERM)
        run.ends(143)
        commands.run("brokerfl", "runs").wait_for("detached")
        commands.write("go", "")
        resumed = commands.run("brokerfl-server", "server:app", "--resume", run_id(run))
        assert json.loads((commands.folder / "result").read_text()) == expected(6)
        other = commands.start("brokerfl-server", "server:app", "--run-config", "nodes=1")
        other.wait_for("Run .* started")
        commands.run("brokerfl", "stop", run_id(other))
        other.ends(31)
        commands.run("brokerfl", "nodes").wait_for("n0")
        assert not any(word in process.text for process in (node, run, resumed) for word in ("WARNING", "permission"))
        node.kill()
