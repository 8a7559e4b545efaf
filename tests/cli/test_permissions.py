"""The users that the documentation shows: what brokerfl needs is allowed, and who has no password has nothing."""

import re
from pathlib import Path

import pytest

from brokerfl.broker.embedded import EmbeddedServer
from tests.cli.conftest import Commands, error_of

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("valkey_url")]

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("file", ["docs/configuration.md", "docker-compose.yml"])
def test_the_users_that_are_shown(commands: Commands, file: str) -> None:
    """With the password, a node, a run and the operator's commands work; without one, nothing is answered."""
    found = re.findall(r"\buser (\w+) (on|off)\b([^\n\"]*)", (ROOT / file).read_text())
    users = {name: (state, *re.sub(r">\S+", ">secret", rules).split()) for name, state, rules in found}
    assert users.pop("default") == ("off",)
    [(name, rules)] = users.items()
    options = ("--user", "default", "off", "--user", name, *rules)
    with EmbeddedServer(options=options) as server:
        commands.env["BROKERFL_REDIS_URL"] = server.url.replace("//", f"//{name}:secret@")
        node = commands.node("--name", "berlin")
        run = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1 rounds=2")
        run.wait_for("Round 2: 1 of 1 replied")
        commands.run("brokerfl", "nodes").wait_for("berlin")
        assert "WARNING" not in node.text + run.text
        assert "password" in error_of(commands.run("brokerfl", "runs", BROKERFL_REDIS_URL=server.url, code=11))
        node.kill()
