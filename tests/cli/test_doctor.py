"""`brokerfl doctor`: what an operator sees of a Redis, and what a script does."""

import json

import pytest

from tests.cli.conftest import Broker, Commands, error_of

pytestmark = pytest.mark.timeout(180)


def test_the_doctor_says_what_is_wrong(commands: Commands, broker: Broker) -> None:
    """A table for people, JSON for scripts; a problem is 50, and a Redis that does not answer 10, as ever."""
    commands.node("--name", "site-7")
    started = {
        "table": commands.start("brokerfl", "doctor"),
        "json": commands.start("brokerfl", "doctor", "--format", "json"),
        "too large": commands.start("brokerfl", "doctor", "--model", "4TiB"),
        "no redis": commands.start("brokerfl", "doctor", "--redis", "redis://127.0.0.1:1"),
    }
    table = started["table"].ends(0).out
    assert table.startswith("CHECK ")
    assert "1 nodes: 1 online, 0 offline" in table
    assert "WARNING" not in started["table"].err, "what is in the table is not also logged"
    rows = {row["check"]: row for row in json.loads(started["json"].ends(0).out)}
    assert rows["persistence"]["status"] == "warning"
    assert rows["permissions"] | {"found": ""} == {"check": "permissions", "status": "ok", "found": "", "advice": ""}
    assert "1 * (1 + 1) * 4T need 8.8T" in started["too large"].ends(50).out
    assert "does not answer" in error_of(started["no redis"].ends(10))
    named = {client["name"] for client in broker.admin.client_list()}
    assert "brokerfl-node:site-7" in named
