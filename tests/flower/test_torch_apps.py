"""Projects as Flower's quickstarts have them, with torch and with scikit-learn, whose ServerApp is killed twice.

Real processes and kill -9. The nodes are those of both runs, since sums depend on their order. They run the project's
ClientApp behind a gate, so that the kills are where a test wants them; nothing else of a project is changed.
"""

import io
import re
import shutil
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli import conftest as cli
from tests.cli.conftest import NEVER, Broker, Commands, Process, run_id

commands = cli.commands
broker = cli.broker

if find_spec("flwr") is None or tuple(map(int, version("flwr").split(".")[:2])) < (1, 21):
    pytest.skip("no flwr, or one without flwr.serverapp (1.13)", allow_module_level=True)

pytestmark = pytest.mark.timeout(300)

ROUNDS = 5

GATED = '''
"""The project's ClientApp: says what it executes, and waits first as long as there is a file of that name."""

import time
from pathlib import Path

from {package}.client_app import app as inner

from flwr.clientapp import ClientApp


class Gated(ClientApp):
    def __call__(self, message, context):
        what = f"{{message.metadata.message_type}}-{{message.content['config']['server-round']}}"
        print("Executes", what, flush=True)
        while Path(what).exists():
            time.sleep(0.01)
        return inner(message, context)


app = Gated()
'''


def project(commands: Commands, name: str, package: str) -> Path:
    """A copy of a project, in which the commands run."""
    shutil.rmtree(commands.folder)
    shutil.copytree(Path(__file__).parent / "apps" / name, commands.folder)
    commands.write("gated.py", GATED.format(package=package))
    config = commands.folder / "pyproject.toml"
    config.write_text(config.read_text().replace(f"{package}.client_app:app", "gated:app"))
    return commands.folder


def executed(nodes: list[Process]) -> Counter[str]:
    return Counter(what for node in nodes for what in re.findall(r"^Executes (.+)$", node.out, re.MULTILINE))


def files_of(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Take the files that a ServerApp saved away."""
    found = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    return found


def begin(commands: Commands, *options: str) -> Process:
    return commands.start("brokerfl-server", ".", *options, OMP_NUM_THREADS="1")


def live_and_die(commands: Commands, package: str, name: str, *files: str) -> list[dict[str, bytes]]:
    """Run a project undisturbed, then killed in two rounds; return the files of both runs."""
    folder = project(commands, name, package)
    nodes = [
        commands.start("brokerfl-node", ".", "--node-config", f"partition-id={index} num-partitions=2")
        for index in range(2)
    ]
    for node in nodes:
        node.wait_for(r"Node \d+ .*serves")
    begin(commands).ends(0)
    undisturbed, once = files_of(folder, files), executed(nodes)
    assert once == {f"{kind}-{number}": 2 for kind in ("train", "evaluate") for number in range(1, ROUNDS + 1)}
    deaths = ("train-2", "evaluate-4")
    for death in deaths:
        commands.write(death, "")
    server = begin(commands, "--lease", NEVER)
    run = run_id(server)
    for death, place in zip(deaths, ("round 2 .train.; 4", "round 4 .evaluate.; 14"), strict=True):
        for node in nodes:
            node.wait_for(rf"(?s)(?:Executes {death}\b.*){{2}}")
        server.kill()
        server = begin(commands, "--lease", NEVER, "--resume", run)
        server.wait_for(f"Run {run} goes on in {place} executions are not repeated")
        (folder / death).unlink()
    server.ends(0)
    assert "cannot record" not in server.text
    assert executed(nodes) == once + once
    return [undisturbed, files_of(folder, files)]


def test_scikit_learn_survives_two_kills(commands: Commands, broker: Broker) -> None:
    """The model, the best one and the history are equal bit for bit, and nothing is executed twice.

    Random states of numpy and variables of main that evaluate_fn rebinds are part of that.
    """
    pytest.importorskip("sklearn")
    runs = live_and_die(commands, "blobs", "sklearn_blobs", "final_model.npz", "best.npz", "history.json")
    undisturbed, killed = map(arrays_of, runs)
    assert killed == undisturbed


def arrays_of(files: dict[str, bytes]) -> Any:
    """What is in the files: archives have a time."""
    found: dict[str, Any] = {}
    for name, data in files.items():
        if name.endswith(".npz"):
            with np.load(io.BytesIO(data)) as archive:
                found[name] = {key: (str(each.dtype), each.shape, each.tobytes()) for key, each in archive.items()}
        else:
            found[name] = data
    return found


def test_torch_survives_two_kills(commands: Commands, broker: Broker) -> None:
    """The model, its running average and the history are equal bit for bit, and nothing is executed twice.

    The random state of torch, the one of a DataLoader, a tensor and two models that evaluate_fn changes are part of it.
    """
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    files = ("final_model.pt", "average.pt", "history.json")
    undisturbed, killed = live_and_die(commands, "shapes", "torch_shapes", *files)
    assert killed == undisturbed
