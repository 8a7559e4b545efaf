"""Which project an app belongs to: what another one's node answers, and what is said of code that was edited."""

import pytest

from tests.cli.conftest import CLIENT, SERVER, Broker, Commands, Process, listed, node_id, run_id

pytestmark = pytest.mark.timeout(180)

#: A ServerApp that says why it got no content.
SAYS_WHY = SERVER.replace("of {reply.metadata.src_node_id}", "{reply.error.reason}")


GIVEN = """
from brokerfl.server import ServerApp

app = ServerApp()


@app.main()
def main(driver, context):
    print(driver.run.overrides, context.run_config)
    raise RuntimeError("so that it can be resumed")
"""


def project(commands: Commands, name: str, version: str = "1.0") -> str:
    """A folder with both apps; the name "" makes one without a pyproject.toml."""
    folder = name or "alone"
    commands.write(f"{folder}/client.py", CLIENT)
    commands.write(f"{folder}/server.py", SAYS_WHY)
    if name:
        commands.write(f"{folder}/pyproject.toml", f'[project]\nname = "{name}"\nversion = "{version}"\n')
    return folder


def node_of(commands: Commands, folder: str, *options: str) -> Process:
    return commands.node("--app-dir", folder, *options)


def run_of(commands: Commands, folder: str, code: int = 0) -> Process:
    return commands.run("brokerfl-server", "server:app", "--app-dir", folder, "--run-config", "nodes=1", code=code)


def test_a_node_of_another_project_refuses(commands: Commands, broker: Broker) -> None:
    """The ServerApp gets Error 1 with both names, the node says so, and no app is called; `--any-app` serves it."""
    mnist, speech, alone = (project(commands, name) for name in ("mnist", "speech", ""))
    for folder, name in ((mnist, r"client:app of project mnist 1\.0 \(\w{8}\)"), (alone, "client:app, which belongs")):
        node = node_of(commands, folder)
        run = run_of(commands, speech, code=5)
        belongs = r"but the run belongs to server:app of project speech 1\.0 \(\w+\)"
        reason = rf"node {node_id(node)[:4]}… runs {name}.*, {belongs}"
        run.wait_for(f"Round 1: Error 1 {reason}: start")
        run.wait_for("Round 1: 0 of 1 replied")
        node.wait_for(f"WARNING.*Run {run_id(run)} is refused: {reason}|Run {run_id(run)} is refused: {reason}")
        assert "Training begins" not in node.text
        node.kill()
        broker.admin.flushall()
    any_app = node_of(commands, mnist, "--any-app")
    run_of(commands, speech).wait_for("Round 1: 1 of 1 replied")
    assert "refused" not in any_app.text


def test_a_node_of_a_project_serves_nobody_without_one(commands: Commands, broker: Broker) -> None:
    """A run that stands alone is not the node's; a node that stands alone serves it."""
    node_of(commands, project(commands, "mnist"), "--name", "mnist")
    run_of(commands, project(commands, "")).wait_for("Error 1 .* to server:app, which belongs to no project: start")
    commands.started[0].kill()
    broker.admin.flushall()
    node_of(commands, "alone")
    run_of(commands, "alone").wait_for("Round 1: 1 of 1 replied")


def test_an_edited_app_is_said(commands: Commands, broker: Broker) -> None:
    """After an edit, a node that was not restarted warns, and so does the ServerApp; nothing is said before."""
    folder = project(commands, "mnist")
    node = node_of(commands, folder)
    before = run_of(commands, folder)
    assert "other code" not in before.text + node.text
    commands.write(f"{folder}/models/layers.py", "SIZE = 3\n")
    run = run_of(commands, folder)
    codes = r"mnist 1\.0 \(\w{8}\) there, mnist 1\.0 \(\w{8}\) here"
    run.wait_for(f"Other code of this run's project on node {node_id(node)[:4]}…: {codes}")
    node.wait_for(f"Run {run_id(run)} has other code of its project than this node: {codes}")
    run.wait_for("Round 1: 1 of 1 replied")


def test_a_run_knows_what_was_given(commands: Commands, broker: Broker) -> None:
    """Of a project with defaults, the keys of --run-config, also after a resume; without defaults, all are given."""
    commands.write("given.py", GIVEN)
    config = "[tool.flwr.app.config]\nrounds = 3\n[tool.flwr.app.config.train]\nlr = 0.1\n"
    commands.write("pyproject.toml", f'[project]\nname = "mnist"\n{config}')
    first = commands.run("brokerfl-server", "given:app", "--run-config", "train.lr=0.5", code=4)
    first.wait_for(r"^\('train.lr',\) {'rounds': 3, 'train.lr': 0.5}$")
    again = commands.run("brokerfl-server", "given:app", "--resume", run_id(first), code=4)
    again.wait_for(r"^\('train.lr',\) {")
    commands.run("brokerfl-server", "given:app", code=4).wait_for(r"^\(\) {'rounds': 3, 'train.lr': 0.1}$")
    commands.write("pyproject.toml", "")
    commands.run("brokerfl-server", "given:app", "--run-config", "lr=0.5", code=4).wait_for("^None {'lr': 0.5}$")


def test_the_list_of_nodes_says_what_they_run(commands: Commands, broker: Broker) -> None:
    """Name, version and digest of the project; the app's own name if it stands alone."""
    node_of(commands, project(commands, "mnist", "1.2"), "--name", "a")
    node_of(commands, project(commands, ""), "--name", "b")
    [row, alone] = listed(commands)
    assert (alone["app"], alone["project"], alone["project_version"], alone["digest"]) == ("client:app", *[None] * 3)
    assert (row["project"], row["project_version"], len(str(row["digest"]))) == ("mnist", "1.2", 16)
    text = commands.run("brokerfl", "nodes").out
    assert f"mnist 1.2 ({str(row['digest'])[:8]})" in text
    assert "client:app" in text
