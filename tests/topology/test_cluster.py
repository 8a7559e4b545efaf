"""`scripts/cluster`: what it prints, what a command on it gets, how it ends, and that nothing is left."""

import re
import signal
import sys
from pathlib import Path

import pytest

from brokerfl.broker.connection import connect
from tests.cli.conftest import Commands, Process, commands

pytestmark = pytest.mark.timeout(180)

__all__ = ["commands"]  # the fixture

ROOT = Path(__file__).parent.parent.parent

PRINTS = "import os; print(sorted(pair for pair in os.environ.items() if 'REDIS' in pair[0])); raise SystemExit(7)"

WAITS = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(9)); print('waiting', flush=True); signal.pause()"


def cluster(commands: Commands, *arguments: str, **env: str) -> Process:
    """Start it as the script does, but with the interpreter of the tests."""
    commands.start("python", "-m", "tests.topology.cluster", *arguments, PYTHONPATH=str(ROOT), **env)
    return commands.started[-1]


def servers_of(commands: Commands) -> list[str]:
    """The directories of servers."""
    return [path.name for path in Path(commands.env["TMPDIR"]).glob("brokerfl-*")]


def test_until_it_is_stopped(commands: Commands, valkey_url: str) -> None:
    """The URL that it prints leads to three primaries; SIGTERM stops all six servers."""
    started = cluster(commands)
    url = started.wait_for(r"is up at (redis\+cluster://\S+)\. Ctrl-C stops it")
    pids = [int(pid) for pid in re.findall(r"\(pid (\d+)\)", started.out)]
    connection = connect(url, prefix="{test}", check=True)
    info = connection.redis.execute_command("CLUSTER INFO")
    assert (info["cluster_state"], info["cluster_size"], info["cluster_known_nodes"]) == ("ok", "3", "6")
    connection.close()
    assert len(pids) == 6
    started.send(signal.SIGTERM)
    started.ends(0)
    assert started.out.endswith("Stopped.\n")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert servers_of(commands) == []


def test_as_long_as_a_command_runs(commands: Commands, valkey_url: str) -> None:
    """It gets the URL and nothing that would win over it, and its exit code is that of the script."""
    started = cluster(commands, "--", "python3", "-c", PRINTS, BROKERFL_REDIS_URL_FILE="elsewhere")
    started.ends(7)
    assert re.fullmatch(r"\[\('BROKERFL_REDIS_URL', 'redis\+cluster://127[^']+'\)\]\n", started.out)
    assert servers_of(commands) == []


def test_a_signal_reaches_the_command(commands: Commands, valkey_url: str) -> None:
    """It is the command's to end, and the servers end after it."""
    started = cluster(commands, "--", "python3", "-c", WAITS)
    started.wait_for("waiting")
    assert len(servers_of(commands)) == 6
    started.send(signal.SIGTERM)
    started.ends(9)
    assert servers_of(commands) == []
    assert cluster(commands, "--", "no-such-command").ends(127).err.startswith("Error: no-such-command cannot be run")


def test_the_demo_on_it(commands: Commands, valkey_url: str) -> None:
    """What the README shows."""
    pytest.importorskip("sklearn")
    demo = [str(Path(sys.executable).parent / "brokerfl"), "demo", "--nodes", "2", "--rounds", "2"]
    text = cluster(commands, "--", *demo).ends(0).text
    assert "Redis at redis+cluster://127.0.0.1" in text
    assert "What travelled" in text
