"""`brokerfl-server`: how a run begins, ends, is detached and is stopped, by real signals."""

import json
import os
import pty
import signal
import subprocess

import pytest

from brokerfl.cli.exits import Exit
from tests.apps import eventually
from tests.cli.conftest import (
    DEADLINE,
    NEVER,
    SCRIPTS,
    Broker,
    Commands,
    Process,
    error_of,
    gated,
    listed,
    node_id,
    run_id,
    runs,
)
from tests.conftest import PREFIX, keys_of

pytestmark = pytest.mark.timeout(180)

#: A run with this config waits for nodes that never come.
WAITING = ("--run-config", "nodes=9")

RAISING = """
import asyncio

from brokerfl.common import Context
from brokerfl.server import Driver, ServerApp

app = ServerApp()


def divide(number: int) -> float:
    return number / 0


@app.main()
def main(driver: Driver, context: Context) -> None:
    if context.run_config.get("leave"):
        raise SystemExit(7)
    if context.run_config.get("cancel"):
        raise asyncio.CancelledError("enough")
    divide(3)
"""

FAILING = """
from brokerfl.client import ClientApp
from brokerfl.common import Context, Message

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    raise ValueError("no data")
"""

STUBBORN = """
import time

from brokerfl.common import Context
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    while True:
        try:
            print("Working", flush=True)
            time.sleep(600)
        except BaseException as error:
            print(f"Swallowed {type(error).__name__}", flush=True)
"""


THREADS = """
from concurrent.futures import ThreadPoolExecutor

from brokerfl.common import Context, RecordSet
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    [node] = driver.wait_for_nodes(1)
    with ThreadPoolExecutor(2) as pool:  # leaving it joins the threads
        messages = [driver.create_message(RecordSet(), "train", node, str(number)) for number in range(2)]
        waits = [pool.submit(driver.send_and_receive, [message]) for message in messages]
        print("Waiting", flush=True)
        [wait.result() for wait in waits]
"""


FORKING = """
import multiprocessing
import time

from brokerfl.common import Context
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    child.terminate()
    child.join()
    print("Ended with", child.exitcode, flush=True)
"""


def remaining(broker: Broker) -> set[str]:
    """Keys of runs."""
    return {*keys_of(broker.admin, "{run:"), *broker.scan("*:data:*"), *broker.scan("*:blob:*")}


def assert_detached(server: Process, commands: Commands, broker: Broker) -> None:
    """It said how to go on and how to stop the run, the list shows it, and doing as told deletes it."""
    run = run_id(server)
    assert f"To resume it:\n    brokerfl-server server:app --resume {run}" in server.err
    assert f"To delete it: brokerfl stop {run}\n" in server.err
    assert runs(commands) == {run: "detached"}
    assert remaining(broker)
    assert commands.run("brokerfl", "stop", run).out == f"Run {run} is stopped and its keys are deleted.\n"
    assert remaining(broker) == set()
    assert runs(commands) == {}


def test_a_run_ends_with_main(commands: Commands, broker: Broker) -> None:
    """The command prints the run's id, ends with 0 when main returns, and no key of the run remains."""
    commands.node()
    server = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1 rounds=2")
    assert f" INFO     Run {run_id(server)} completed after " in server.err
    assert remaining(broker) == set()
    ended = json.loads(commands.run("brokerfl", "runs", "--all", "--format", "json").out)
    assert [(row["run"], row["state"]) for row in ended] == [(run_id(server), "completed")]


def test_a_run_of_errors_only(commands: Commands, broker: Broker) -> None:
    """The log names the node and its exception once, the run's end has another code, and no key remains."""
    commands.write("client.py", FAILING)
    node = commands.node("--name", "site-3")
    server = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1 rounds=2", code=5)
    warnings = [line for line in server.err.splitlines() if " WARNING " in line]
    assert f" Error 2 from site-3 ({node_id(node)[:4]}…): ValueError: its text is only in the node's log" in warnings[0]
    assert "no data" not in server.text
    assert " s: 2 of 2 replies were errors" in warnings[1]
    assert len(warnings) == 2
    assert "\033" not in server.err  # no progress line in a pipe
    assert remaining(broker) == set()


class OnTerminal:
    """A ServerApp that waits for nodes, with a terminal as standard error."""

    def __init__(self, commands: Commands, *options: str) -> None:
        self._descriptor, theirs = pty.openpty()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BROKERFL_")}
        self._process = subprocess.Popen(
            [str(SCRIPTS / "brokerfl-server"), "server:app", *WAITING, *options], cwd=commands.folder,
            env={**inherited, **commands.env, "TERM": "xterm"}, stdout=subprocess.DEVNULL, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)

    def text(self) -> str:
        """All that it shows until it has said in its log what it waits for, and was ended."""
        shown, is_ended = b"", False
        while True:
            try:
                shown += os.read(self._descriptor, 65536)
            except OSError:  # it has closed its end
                break
            if not is_ended and b"waiting for nodes: 0 of 9 online" in shown:
                self._process.terminate()
                is_ended = True
        assert self._process.wait(DEADLINE) == 143, shown
        os.close(self._descriptor)
        return shown.decode()


def test_quiet_shows_no_progress_line(commands: Commands, broker: Broker) -> None:
    """On a terminal there is one below the log, and with --quiet only the log."""
    loud, quiet = OnTerminal(commands), OnTerminal(commands, "--quiet")
    assert "0/9" in loud.text()
    assert "0/9" not in quiet.text()
    for run in runs(commands):
        commands.run("brokerfl", "stop", run)


def test_a_drained_run_comes_to_its_end(commands: Commands, broker: Broker) -> None:
    """Its app goes on without its messages, and what was replied counts; there is nothing to drain after that."""
    commands.node()
    server = commands.server("--run-config", f"nodes=1 until='{commands.folder / 'enough'}'")
    run = run_id(server)
    server.wait_for("Round 1: 1 of 1 replied")
    assert commands.run("brokerfl", "drain", run).out == f"Run {run} is being drained: it pushes nothing any more.\n"
    server.wait_for(f"Run {run} is being drained: its app can push nothing any more")
    server.wait_for("Error 3 of")
    commands.write("enough", "")
    server.ends(0)
    assert remaining(broker) == set()
    commands.run("brokerfl", "drain", run, code=30)


def test_an_operator_cancels_what_a_node_hangs_on(commands: Commands, broker: Broker) -> None:
    """The app gets Error 3 for it and comes to its end; what is not there has an exit code of its own."""
    commands.node("--name", "site-9", *gated(commands.folder / "gate"))  # it never opens
    server = commands.server("--run-config", "nodes=1")
    run = run_id(server)
    eventually(lambda: listed(commands)[0]["doing"], DEADLINE)
    unknown = commands.start("brokerfl", "cancel", run, "f" * 32)
    at_nobody = commands.start("brokerfl", "cancel", run, "--node", "nobody")
    neither = commands.start("brokerfl", "cancel", run)
    assert "has no message" in error_of(unknown.ends(Exit.MESSAGE_NOT_FOUND))
    error_of(at_nobody.ends(Exit.NODE_NOT_FOUND))
    error_of(neither.ends(Exit.USAGE))
    assert server.is_running
    done = json.loads(commands.run("brokerfl", "cancel", run[:6], "--node", "site-9", "--format", "json").out)
    assert (done["run"], len(done["messages"])) == (run, 1)
    server.wait_for(rf"An operator cancelled 1 messages of run {run}: site-9 ")
    server.wait_for("Round 1: Error 3 of")
    server.ends(0)
    ended = [commands.start("brokerfl", "cancel", each, done["messages"][0]) for each in (run, "nothing")]
    for process in ended:
        process.ends(Exit.RUN_NOT_FOUND)


def test_an_exception_in_main_detaches_the_run(commands: Commands, broker: Broker) -> None:
    """It ends with 4, the traceback starts in the user's file without a frame of ours, and the run can be stopped."""
    commands.write("server.py", RAISING)
    server = commands.run("brokerfl-server", "server:app", "--lease", NEVER, code=4)
    first = server.err.split("Traceback (most recent call last):\n")[1].splitlines()[0]
    assert f'File "{commands.folder / "server.py"}"' in first
    assert "return number / 0" in server.err
    assert "brokerfl/cli" not in server.err
    assert f"Run {run_id(server)} is detached: main raised ZeroDivisionError: division by zero\n" in server.err
    assert_detached(server, commands, broker)


def test_sys_exit_in_main_detaches_the_run(commands: Commands, broker: Broker) -> None:
    """Only a main that returns ends its run: SystemExit is an exception like any other, and ends with 4."""
    commands.write("server.py", RAISING)
    server = commands.run("brokerfl-server", "server:app", "--run-config", "leave=true", code=4)
    assert "main raised SystemExit: 7\n" in server.err
    assert_detached(server, commands, broker)


def test_a_base_exception_in_main_detaches_the_run(commands: Commands, broker: Broker) -> None:
    """asyncio's CancelledError is no Exception, and ends with 4 like one."""
    commands.write("server.py", RAISING)
    server = commands.run("brokerfl-server", "server:app", "--run-config", "cancel=true", "--lease", NEVER, code=4)
    assert "main raised CancelledError: enough\n" in server.err
    assert_detached(server, commands, broker)


def test_an_async_main_is_refused(commands: Commands, broker: Broker) -> None:
    """A main that would have to be awaited has not run: it ends with 4 and a line that says what to write instead."""
    commands.write("server.py", RAISING.replace("def main", "async def main"))
    server = commands.run("brokerfl-server", "server:app", "--lease", NEVER, code=4)
    assert "TypeError: the main function returned a coroutine, which runs nothing by itself: write `def" in server.err
    assert "never awaited" not in server.err
    assert_detached(server, commands, broker)


def test_a_child_that_main_ends_dies_silently(commands: Commands, broker: Broker) -> None:
    """SIGTERM ends a process that main forked, as in any Python, and the run goes on."""
    commands.write("server.py", FORKING)
    server = commands.run("brokerfl-server", "server:app")
    assert server.out == "Ended with -15\n"
    assert "Traceback" not in server.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_detaches_the_run(commands: Commands, broker: Broker, number: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM in the middle of a round end with 130 and 143; the run is let go of long before its lease."""
    node = commands.node("--node-config", "gate='never'")
    server = commands.server("--run-config", "nodes=1", "--lease", NEVER, "--retention", "7200")
    node.wait_for("Training begins")
    server.send(number)
    server.ends(code)
    assert f"Run {run_id(server)} is detached: got {number.name}\n" in server.err
    assert "Its messages stay in Redis for 2 h." in server.err
    assert "Traceback" not in server.text
    assert len(broker.scan(f"{PREFIX}:*{run_id(server)}*:in:*")) == 1
    assert_detached(server, commands, broker)


def test_a_signal_while_the_run_is_created_detaches_it(commands: Commands, broker: Broker) -> None:
    """SIGTERM that comes before Redis has answered leaves no run that nobody knows of: its id is printed."""
    broker.admin.client_pause(600_000, all=False)
    server = commands.start("brokerfl-server", "server:app", *WAITING, "--lease", NEVER)
    eventually(lambda: broker.admin.info("clients")["blocked_clients"], DEADLINE)
    server.send(signal.SIGTERM)
    broker.admin.client_unpause()
    assert "Traceback" not in server.ends(143).text
    assert_detached(server, commands, broker)


def test_a_signal_detaches_a_run_whose_threads_wait(commands: Commands, broker: Broker) -> None:
    """SIGTERM also ends the waits of the app's other threads, which leaving a ThreadPoolExecutor joins."""
    commands.write("server.py", THREADS)
    node = commands.node("--node-config", "gate='never'")
    server = commands.server("--lease", NEVER)
    node.wait_for("Training begins")
    server.send(signal.SIGTERM)
    server.ends(143)
    assert f"Run {run_id(server)} is detached: got SIGTERM\n" in server.err
    assert_detached(server, commands, broker)


def test_a_second_signal_ends_a_server_at_once(commands: Commands, broker: Broker) -> None:
    """A main that swallows whatever comes cannot swallow the second Ctrl-C."""
    commands.write("server.py", STUBBORN)
    server = commands.server()
    server.wait_for("^Working$")
    server.send(signal.SIGINT)
    server.wait_for("^Swallowed Signalled$")
    server.send(signal.SIGINT, until_ended=True)
    server.ends(130)


def test_stop_ends_a_living_server(commands: Commands, broker: Broker) -> None:
    """`brokerfl stop` deletes a run in the middle of a round; its ServerApp ends with 31; a late reply is dropped."""
    node = commands.node("--node-config", "gate='gate'")
    server = commands.server("--run-config", "nodes=1", "--lease", NEVER)
    node.wait_for("Training begins")
    stopped = commands.run("brokerfl", "stop", run_id(server), "--format", "json")
    assert json.loads(stopped.out) == {"run": run_id(server), "state": "stopped"}
    assert server.ends(31).err.splitlines()[-1] == f"Error: run {run_id(server)} was stopped"
    assert "Traceback" not in server.text
    commands.write("gate", "")
    node.wait_for(f"Run {run_id(server)} is over; a late reply was dropped")
    assert remaining(broker) == set()


def test_a_frozen_server_revives_no_run(commands: Commands, broker: Broker) -> None:
    """A ServerApp that slept while its run was stopped ends with 31 or 32 and one line when it wakes up."""
    server = commands.server(*WAITING, "--lease", "0.9")
    server.send(signal.SIGSTOP)
    commands.run("brokerfl", "stop", run_id(server))
    server.send(signal.SIGCONT)
    assert server.ends(31, 32).err.splitlines()[-1].startswith(f"Error: run {run_id(server)} ")
    assert "Traceback" not in server.text
    assert remaining(broker) == set()


@pytest.mark.parametrize("when", ["at once", "after its lease"])
def test_a_killed_server_can_be_stopped(commands: Commands, broker: Broker, when: str) -> None:
    """After kill -9 `brokerfl stop` deletes all of the run; once its lease has lapsed, the run shows as detached."""
    node = commands.node("--node-config", "gate='never'")
    server = commands.server("--run-config", "nodes=1", "--lease", "0.9")
    run = run_id(server)
    node.wait_for("Training begins")
    server.kill()
    if when == "after its lease":
        eventually(lambda: not broker.scan(f"{PREFIX}:{{run:{run}}}:lease"), DEADLINE)
        assert runs(commands) == {run: "detached"}
    assert commands.run("brokerfl", "stop", run).out == f"Run {run} is stopped and its keys are deleted.\n"
    assert remaining(broker) == set()
    ended = json.loads(commands.run("brokerfl", "runs", "--all", "--format", "json").out)
    assert [(row["run"], row["state"]) for row in ended] == [(run, "stopped")]


def test_only_what_there_is_can_be_stopped(commands: Commands, broker: Broker) -> None:
    """A run that never was, and one that has ended, end `brokerfl stop` with 30 and a line that says which it is."""
    commands.write("server.py", RAISING.replace("divide(3)", "pass"))
    server = commands.run("brokerfl-server", "server:app")
    again = commands.run("brokerfl", "stop", run_id(server), code=30)
    assert again.err == f"Error: run {run_id(server)} has already ended\n"
    unknown = commands.run("brokerfl", "stop", "12345", code=30)
    assert unknown.err == f"Error: there is no run 12345 under the prefix '{PREFIX}'; see brokerfl runs\n"


def test_a_round_timeout(commands: Commands, broker: Broker) -> None:
    """With --round-timeout, a node that does not answer does not hold the run: the app goes on with what is there."""
    commands.node(*gated(commands.folder / "gate"))
    run = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1", "--round-timeout", "0.2")
    run.wait_for("Round 1: 0 of 1 replied")
    commands.write("gate", "")
