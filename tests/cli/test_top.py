"""`brokerfl top` on a terminal: what it shows, that keys work, and that it leaves the terminal as it was."""

import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from tests.apps import eventually
from tests.cli.conftest import DEADLINE, SCRIPTS, Broker, Commands, node_id, run_id, runs

pytestmark = pytest.mark.timeout(180)

#: Sequences that a terminal obeys.
_CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()=>].?)")

#: What ends the other screen of a terminal, and shows its cursor again.
_LEFT, _CURSOR = "\x1b[?1049l", "\x1b[?25h"


class Terminal:
    """`brokerfl top` on a terminal of 120 columns and 30 lines."""

    def __init__(self, commands: Commands) -> None:
        self.descriptor, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, 120))
        self.before = termios.tcgetattr(theirs)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BROKERFL_")}
        env = {**inherited, **commands.env, "TERM": "xterm"}
        self.process = subprocess.Popen(
            [str(SCRIPTS / "brokerfl"), "top"], stdin=theirs, stdout=theirs, stderr=theirs, env=env,
            start_new_session=True,
        )  # fmt: skip
        self._theirs = theirs
        self.text = ""

    def read(self) -> None:
        """Take what it has written."""
        while select.select([self.descriptor], [], [], 0.05)[0]:
            self.text += os.read(self.descriptor, 65536).decode(errors="replace")

    def wait_for(self, pattern: str) -> None:
        """Wait until something is shown that was not there before the last key."""
        until = time.monotonic() + DEADLINE
        while re.search(pattern, _CONTROL.sub("", self.text)) is None:
            assert time.monotonic() < until, f"no {pattern!r} in {self.text}"
            self.read()

    def press(self, keys: str) -> None:
        """Press keys, and forget what was there."""
        self.read()
        self.text = ""
        os.write(self.descriptor, keys.encode())

    def ends(self, code: int) -> None:
        """It ends so, and the terminal is as it was."""
        eventually(lambda: (self.read(), self.process.poll() is not None)[1], DEADLINE)
        self.read()
        assert self.process.returncode == code
        assert termios.tcgetattr(self._theirs) == self.before
        assert _LEFT in self.text
        assert _CURSOR in self.text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)
        os.close(self._theirs)


@pytest.fixture
def terminal(commands: Commands, broker: Broker) -> Iterator[Terminal]:
    """One that shows its first picture."""
    made = Terminal(commands)
    made.wait_for("runs 0 +nodes 0")
    yield made
    made.close()


def test_it_shows_what_happens_and_stops_a_run(commands: Commands, broker: Broker, terminal: Terminal) -> None:
    """A node and a run come into sight; the run is shown whole, and stopped once somebody said yes."""
    node = commands.node("--name", "berlin")
    server = commands.server("--run-config", "nodes=9")
    run = run_id(server)
    terminal.wait_for("runs 1: 1 .*nodes 1: 1 ready")
    terminal.wait_for(f">{run[:4]}… +nodes=9 ")
    terminal.wait_for("berlin")
    terminal.press("\r")
    terminal.wait_for(f"run +{run}")
    terminal.press("\x1b")
    terminal.wait_for(" RUN +NAME +STATE")
    terminal.press("x")
    terminal.wait_for(f"stop run {run} and delete its keys. y/n")
    terminal.press("n")
    terminal.wait_for("q quit")
    assert runs(commands).keys() == {run}
    terminal.press("xy")
    terminal.wait_for(f"run {run} is stopped and its keys are deleted")
    server.ends(31)
    terminal.press("jj\r")
    terminal.wait_for(f"node +{node_id(node)}")
    terminal.press("q")
    terminal.ends(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(terminal: Terminal, number: signal.Signals) -> None:
    """With the code of the signal."""
    terminal.process.send_signal(number)
    terminal.ends(128 + number)


def test_it_goes_on_while_redis_is_away(broker: Broker, terminal: Terminal) -> None:
    """The first line says so, and the picture comes back."""
    broker.admin.execute_command("CLIENT", "PAUSE", 4000, "ALL")
    terminal.wait_for("redis_away: ")
    terminal.press("f")
    terminal.wait_for("(?s)Valkey .*list: failures")
    termios.tcsetwinsize(terminal.descriptor, (16, 60))
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.press("?")
    terminal.wait_for("these lines")
    terminal.press("q")
    terminal.ends(0)


def test_without_a_terminal_it_prints_one_screen(commands: Commands, broker: Broker) -> None:
    """All of it, however many rows there are, and nothing that only a terminal understands."""
    commands.nodes(2)
    text = commands.run("brokerfl", "top").out
    assert text.startswith(f"brokerfl top  {broker.url}  Valkey ")
    assert "nodes 2: 2 ready" in text
    assert "\x1b" not in text
