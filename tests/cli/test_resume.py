"""`brokerfl-server --resume`: a run goes on after its ServerApp died, and only where that is what was meant."""

import json
import shlex
import signal
import time

import pytest

from tests.apps import contents_of, eventually
from tests.cli.conftest import DEADLINE, NEVER, Broker, Commands, Process, error_of, node_id, run_id
from tests.cli.counting import EXAMPLES, executed_once, keys_of, open_gate, start_node, total, write_apps
from tests.conftest import PREFIX

pytestmark = pytest.mark.timeout(180)

IGNORING = '''
"""Three rounds that begin at 1 whatever `context.state` says."""

from logging import INFO

from brokerfl.common import Context, MessageType, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    for number in (1, 2, 3):
        nodes = driver.wait_for_nodes(2)
        messages = [driver.create_message(RecordSet(), MessageType.TRAIN, node, str(number)) for node in nodes]
        replies = driver.send_and_receive(messages)
        log(INFO, "Round %s: %s replies", number, sum(reply.has_content() for reply in replies))
'''


BEGINS_ANEW = "has nothing in context.state: its app begins at its start, while its nodes keep theirs"


@pytest.fixture(autouse=True)
def apps(commands: Commands) -> None:
    """The example's ServerApp, and a ClientApp that can be held in a round."""
    write_apps(commands)


def in_round_2(commands: Commands, broker: Broker, *options: str) -> Process:
    """A ServerApp of which one node has replied in round 2, while the other one is at work."""
    fast, slow = start_node(commands, "fast"), start_node(commands, "slow", gate=2)
    server = commands.start("brokerfl-server", "server:app", "--run-config", "num-rounds=3 min-nodes=2", *options)
    slow.wait_for("Round 2 begins")
    fast.wait_for("Round 2 begins")
    outbox = f"{PREFIX}:{{run:{run_id(server)}}}:out:{node_id(fast)}"
    # Round 1's reply is deleted by the first look at the outboxes after round 2 was pushed.
    eventually(lambda: broker.admin.xlen(outbox) and broker.admin.xlen(f"{PREFIX}:bell:{{run:{run_id(server)}}}") == 3)
    return server


def resumed(commands: Commands, run: str, *options: str, app: str = "server:app") -> Process:
    """Resume a run and wait until it goes on."""
    server = commands.start("brokerfl-server", app, "--resume", run, *options)
    server.wait_for(f"Run {run} of {app} resumed")
    return server


def statuses(commands: Commands) -> dict[str, str]:
    rows = json.loads(commands.run("brokerfl", "runs", "--format", "json").out)
    return {row["run"]: row["state"] for row in rows}


def test_a_killed_server_is_resumed_in_mid_round(commands: Commands, broker: Broker) -> None:
    """kill -9 in round 2, --resume: it begins with round 2, no node executes a message twice, and the sum is exact."""
    server = in_round_2(commands, broker, "--lease", NEVER)
    server.kill()
    again = resumed(commands, run_id(server))
    again.wait_for("Starting server round 2")
    open_gate(commands)
    assert f"The sum is {total(2, 3)} after 3 rounds" in again.ends(0).text
    assert "Starting server round 1" not in again.text
    assert BEGINS_ANEW not in again.text
    assert [executed_once(commands, name) for name in ("fast", "slow")] == [["1", "2", "3"]] * 2
    assert keys_of(broker, run_id(server)) == {}


def test_ctrl_c_prints_the_command_that_resumes(commands: Commands, broker: Broker) -> None:
    """What is printed after Ctrl-C, with the options of the first start, resumes the run as it stands."""
    elsewhere = commands.folder / "of the server"
    elsewhere.mkdir()
    (commands.folder / "server.py").rename(elsewhere / "server.py")
    options = ("--app-dir", str(elsewhere), "--retention", "7200", "--redis", broker.url)
    server = in_round_2(commands, broker, *options)
    server.send(signal.SIGINT)
    text = server.ends(130).err
    assert statuses(commands) == {run_id(server): "detached"}
    words = shlex.split(text.split("To resume it:\n")[1].splitlines()[0])
    assert set(words) >= {"brokerfl-server", "server:app", "--resume", run_id(server), *options}
    assert "--run-config" not in words
    assert f"To delete it: brokerfl stop {run_id(server)} --redis {broker.url}\n" in text
    del commands.env["BROKERFL_REDIS_URL"]
    again = commands.start(*words)
    again.wait_for("resumed")
    open_gate(commands)
    assert f"The sum is {total(2, 3)} after 3 rounds" in again.ends(0).text
    assert [executed_once(commands, name) for name in ("fast", "slow")] == [["1", "2", "3"]] * 2


def test_a_password_is_not_printed(commands: Commands, broker: Broker) -> None:
    """The command that resumes has *** where the URL that was typed holds a password."""
    broker.admin.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all")
    url = broker.url.replace("redis://", "redis://app:secret@")
    server = commands.start("brokerfl-server", "server:app", "--redis", url)
    server.wait_for("started")
    server.send(signal.SIGINT)
    assert f"--redis '{url.replace('secret', '***')}'" in server.ends(130).err
    assert "secret" not in server.text


def test_a_run_whose_main_raised_is_resumed_after_the_fix(commands: Commands, broker: Broker) -> None:
    """main raises in round 2; with the file corrected, --resume ends the run, and nothing is executed twice."""
    right = commands.folder.joinpath("server.py").read_text()
    line = '        done["rounds"] = server_round\n'
    assert right.count(line) == 1
    commands.write("server.py", right.replace(line, f"        {'1 / (2 - server_round)'}\n{line}"))
    for name in ("a", "b"):
        start_node(commands, name)
    server = commands.run("brokerfl-server", "server:app", "--run-config", "num-rounds=3", code=4)
    assert "is detached: main raised ZeroDivisionError" in server.err
    commands.write("server.py", right)
    again = resumed(commands, run_id(server))
    assert f"The sum is {total(2, 3)} after 3 rounds" in again.ends(0).text
    assert "Starting server round 1" not in again.text
    assert [executed_once(commands, name) for name in ("a", "b")] == [["1", "2", "3"]] * 2


def test_a_run_keeps_its_run_config(commands: Commands, broker: Broker) -> None:
    """--resume with another --run-config ends with 2 and changes nothing; with the same one, or none, it goes on.

    What is not given stays as it was. More rounds are another matter: see tests/flower.
    """
    server = in_round_2(commands, broker, "--lease", NEVER)
    run = run_id(server)
    server.kill()
    before = keys_of(broker, run)
    other = commands.run("brokerfl-server", "server:app", "--resume", run, "--run-config", "num-rounds=2", code=2)
    assert error_of(other).startswith(f"Error: run {run} was started with the run config {{'num-rounds': 3, ")
    assert "not {'num-rounds': 2, 'min-nodes': 2}: resume it without a run config" in error_of(other)
    assert keys_of(broker, run) == before
    commands.env["BROKERFL_RUN_CONFIG"] = "num-rounds=5"  # for runs that begin
    again = resumed(commands, run, "--run-config", "min-nodes=2", "--run-config", "num-rounds=3")
    again.kill()
    again = resumed(commands, run)
    open_gate(commands)
    assert f"The sum is {total(2, 3)} after 3 rounds" in again.ends(0).text


def test_only_what_there_is_can_be_resumed(commands: Commands, broker: Broker) -> None:
    """A run that ended, was stopped or never was ends --resume with 30, and each line says which it is."""
    commands.write("server.py", IGNORING.replace("(1, 2, 3)", "()"))
    ended = run_id(commands.run("brokerfl-server", "server:app"))
    detached = commands.start("brokerfl-server", "server:app", "--app-dir", str(EXAMPLES / "resume"))
    stopped = run_id(detached)
    detached.send(signal.SIGTERM)
    detached.ends(143)
    assert statuses(commands) == {stopped: "detached"}
    commands.run("brokerfl", "stop", stopped)
    for run, reason in (
        (ended, f"run {ended} has already ended"),
        (stopped, f"run {stopped} has already ended"),
        ("12345", f"there is no run 12345 under the prefix '{PREFIX}'; see brokerfl runs"),
    ):
        process = commands.run("brokerfl-server", "server:app", "--resume", run, code=30)
        assert error_of(process) == f"Error: {reason}"
    assert statuses(commands) == {}


def test_another_app_does_not_resume_a_run(commands: Commands, broker: Broker) -> None:
    """In the wrong directory --resume ends with 2, and the run stays as it was; --another-app is for a renamed app."""
    server = in_round_2(commands, broker)
    run = run_id(server)
    server.send(signal.SIGTERM)
    server.ends(143)
    commands.write("other.py", commands.folder.joinpath("server.py").read_text())
    before = contents_of(broker.admin, sorted(broker.scan(f"*{run}*")))
    other = commands.run("brokerfl-server", "other:app", "--resume", run, code=2)
    assert error_of(other).startswith(f"Error: run {run} belongs to server:app, not to other:app: ")
    assert contents_of(broker.admin, sorted(broker.scan(f"*{run}*"))) == before
    open_gate(commands)
    renamed = commands.run("brokerfl-server", "other:app", "--resume", run, "--another-app")
    assert f"The sum is {total(2, 3)} after 3 rounds" in renamed.text


def test_options_that_make_no_sense(commands: Commands) -> None:
    """What needs --resume ends with 2 before anything is asked of Redis."""
    closed = ("--redis", "redis://127.0.0.1:1")
    for option in ("--takeover", "--another-app"):
        alone = commands.run("brokerfl-server", "server:app", option, *closed, code=2)
        assert error_of(alone) == f"Error: {option} needs --resume RUN, the run to continue"


def test_a_second_server_app_is_refused(commands: Commands, broker: Broker) -> None:
    """While a ServerApp lives, --resume of its run ends with 34 within one lease, and disturbs nothing."""
    lease = 6.0
    server = in_round_2(commands, broker, "--lease", str(lease))
    second = commands.start("brokerfl-server", "server:app", "--resume", run_id(server))
    second.wait_for("waiting to see whether it is alive")
    began = time.monotonic()
    second.ends(34)
    assert time.monotonic() - began < lease
    last = second.err.splitlines()[-1]
    assert last.startswith(f"Error: run {run_id(server)} has another ServerApp, process {server.pid} on ")
    assert last.endswith("; --takeover takes the run from it")
    open_gate(commands)
    assert f"The sum is {total(2, 3)} after 3 rounds" in server.ends(0).text
    assert [executed_once(commands, name) for name in ("fast", "slow")] == [["1", "2", "3"]] * 2


def test_a_takeover_fences_a_frozen_server(commands: Commands, broker: Broker) -> None:
    """--takeover does not wait for the lease of a frozen ServerApp, which ends with 33 and one line when it wakes."""
    frozen = in_round_2(commands, broker, "--lease", NEVER)
    frozen.send(signal.SIGSTOP)
    taker = resumed(commands, run_id(frozen), "--takeover")
    taker.wait_for("Starting server round 2")
    frozen.send(signal.SIGCONT)
    last = frozen.ends(33).err.splitlines()[-1]
    assert last == f"Error: run {run_id(frozen)} was taken over by another ServerApp"
    assert "Traceback" not in frozen.text
    open_gate(commands)
    assert f"The sum is {total(2, 3)} after 3 rounds" in taker.ends(0).text
    assert [executed_once(commands, name) for name in ("fast", "slow")] == [["1", "2", "3"]] * 2
    assert keys_of(broker, run_id(frozen)) == {}


def test_an_app_that_ignores_the_state_ends(commands: Commands, broker: Broker) -> None:
    """Resumed, it is told so, begins at its round 1 and ends; what is open is adopted when its round comes."""
    commands.write("server.py", IGNORING)
    server = in_round_2(commands, broker, "--lease", NEVER)
    server.kill()
    assert BEGINS_ANEW not in server.text
    again = resumed(commands, run_id(server))
    again.wait_for(f"Run {run_id(server)} {BEGINS_ANEW}")
    open_gate(commands)
    assert [again.ends(0).text.count(f"Round {number}: 2 replies") for number in (1, 2, 3)] == [1, 1, 1]
    assert [executed_once(commands, name) for name in ("fast", "slow")] == [["1", "2", "1", "3"]] * 2


def test_a_detached_run_can_be_stopped(commands: Commands, broker: Broker) -> None:
    """`brokerfl runs` shows it as detached, `brokerfl stop` deletes it with no ServerApp alive; a late node is mute."""
    server = in_round_2(commands, broker, "--lease", NEVER)
    run = run_id(server)
    server.send(signal.SIGINT)
    server.ends(130)
    assert statuses(commands) == {run: "detached"}
    commands.run("brokerfl", "stop", run)
    assert keys_of(broker, run) == {}
    open_gate(commands)
    fresh = commands.run("brokerfl-server", "server:app", "--run-config", "num-rounds=1")
    assert f"The sum is {total(2, 1)} after 1 rounds" in fresh.text
    assert keys_of(broker, run) == {}


@pytest.mark.parametrize("app", ["server:app", "steps:app"])
def test_the_example_survives_everything(commands: Commands, broker: Broker, app: str) -> None:
    """examples/resume: ServerApp and a node are killed in mid-round and started again; the sum is exact.

    With a state, and with steps.
    """
    folder = ("--app-dir", str(EXAMPLES / "resume"))
    quick = ("--node-config", "seconds=0.3", "--lease", "3")
    nodes = {
        name: commands.start("brokerfl-node", "client:app", *folder, "--name", name, *quick)
        for name in ("berlin", "paris")
    }
    server = commands.start("brokerfl-server", app, *folder, "--run-config", "num-rounds=5")
    nodes["paris"].wait_for("Executing message 2 ")
    server.kill()
    nodes["paris"].kill()
    again = resumed(commands, run_id(server), *folder, app=app)
    paris = commands.start("brokerfl-node", "client:app", *folder, "--name", "paris", *quick)
    assert f"The sum is {total(2, 5)} after 5 rounds" in again.ends(0).text
    assert "Executing message 5 " in paris.text
    eventually(lambda: keys_of(broker, run_id(server)) == {}, DEADLINE)


def test_the_digits_go_on_where_they_were(commands: Commands, broker: Broker) -> None:
    """examples/digits: a run that was killed early ends after all its rounds with the accuracy of one that was not."""
    pytest.importorskip("sklearn")
    folder = ("--app-dir", str(EXAMPLES / "digits"))
    nodes = [
        commands.start("brokerfl-node", "client:app", *folder, "--node-config", f"partition-id={i} num-partitions=2")
        for i in range(2)
    ]
    for node in nodes:
        node.wait_for("serves client:app")
    config = "num-rounds=40 min-nodes=2 local-epochs=1"
    undisturbed = commands.run("brokerfl-server", "server:app", *folder, "--run-config", config)
    server = commands.start("brokerfl-server", "server:app", *folder, "--run-config", config)
    server.wait_for("Round 2: accuracy")
    server.kill()
    again = resumed(commands, run_id(server), *folder)
    again.ends(0).wait_for(r"Resuming after server round \d")  # 1, if the push of round 3 had not come to pass
    # The order in which replies are folded may change the last bits, and so a digit or two of the 359.
    ends = [float(process.wait_for(r"Finished: accuracy ([\d.]+)")) for process in (undisturbed, again)]
    assert ends[0] == pytest.approx(ends[1], abs=0.01)
