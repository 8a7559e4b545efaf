"""examples/fedbuff: it does what its README says, and a ServerApp that was killed counts every update once."""

import json
from collections import defaultdict
from typing import Any

import pytest

from tests.cli.conftest import Broker, Commands, Process, node_id, run_id
from tests.cli.counting import EXAMPLES, keys_of
from tests.conftest import PREFIX

pytestmark = pytest.mark.timeout(180)

FOLDER = ("--app-dir", str(EXAMPLES / "fedbuff"))


@pytest.fixture
def nodes(commands: Commands, broker: Broker) -> list[Process]:
    """A fast node, and a straggler five times slower. A ServerApp waits for them by itself."""
    pytest.importorskip("sklearn")
    return [
        commands.start(
            "brokerfl-node", "client:app", *FOLDER, "--name", f"n{index}",
            "--node-config", f"partition-id={index} num-partitions=2 seconds=0.06 slowdown={slowdown}",
        )
        for index, slowdown in enumerate((1, 5))
    ]  # fmt: skip


def options(config: str) -> tuple[str, ...]:
    return (*FOLDER, "--run-config", f'min-nodes=2 history="history" {config}')


def history(commands: Commands) -> dict[int, Any]:
    """The versions by number. A version that a crash undid is there again: the last line is the one that counts."""
    lines = map(json.loads, commands.folder.joinpath("history").read_text().splitlines())
    return {line["version"]: line for line in lines}


def counted(versions: dict[int, Any]) -> dict[str, list[int]]:
    """The numbers of the updates that were counted, in order, by node."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for version in versions.values():
        for update in version["updates"]:
            node, number = update.split()
            numbers[node].append(int(number))
    return {node: sorted(found) for node, found in numbers.items()}


def test_nobody_waits_for_the_straggler(commands: Commands, broker: Broker, nodes: list[Process]) -> None:
    """FedBuff makes its versions of the updates that are there; in rounds each has one of every node, none stale."""
    server = commands.run("brokerfl-server", "server:app", *options("num-versions=10 buffer-size=2"))
    fast, slow = map(node_id, nodes)
    assert "Finished: 20 updates made 10 versions" in server.text
    made = history(commands)
    assert [len(version["updates"]) for version in made.values()] == [2] * 10
    numbers = counted(made)
    assert len(numbers[fast]) > 2 * len(numbers[slow])
    staleness = {
        node: [
            age
            for version in made.values()
            for update, age in zip(version["updates"], version["staleness"], strict=True)
            if update.startswith(node)
        ]
        for node in numbers
    }
    assert max(staleness[fast]) <= 1
    assert max(staleness[slow]) >= 2
    assert made[10]["accuracy"] > 0.5

    commands.folder.joinpath("history").unlink()
    commands.run("brokerfl-server", "sync:app", *options("num-versions=2"))
    assert counted(history(commands)) == {fast: [1, 2], slow: [1, 2]}
    assert [version["staleness"] for version in history(commands).values()] == [[0, 0]] * 2


def test_a_killed_server_counts_every_update_once(commands: Commands, broker: Broker, nodes: list[Process]) -> None:
    """kill -9 with a buffer half full, --resume: all versions are made, each update is in one, none is left out."""
    fast = nodes[0]
    server = commands.start("brokerfl-server", "server:app", *options("num-versions=4 buffer-size=6"))
    first = int(fast.wait_for(r"Update (\d+) trains version 1 \["))
    # The ServerApp has the update before this one, which is of no version yet.
    fast.wait_for(rf"Update {first + 1} trains version 1 \[")
    server.kill()
    run = run_id(server)
    in_ledger = broker.admin.hlen(f"{PREFIX}:{{run:{run}}}:ledger")
    assert 3 <= in_ledger < 6 + len(nodes), "what version 1 was made of has left Redis, and nothing else"
    resumed = commands.run("brokerfl-server", "server:app", *FOLDER, "--resume", run)
    assert "Resuming with version 1" in resumed.text
    assert "Finished: 24 updates made 4 versions" in resumed.text
    made = history(commands)
    assert [len(version["updates"]) for version in made.values()] == [6] * 4
    assert counted(made) == {node: list(range(1, len(found) + 1)) for node, found in counted(made).items()}
    assert min(age for version in made.values() for age in version["staleness"]) >= 0
    assert keys_of(broker, run) == {}
