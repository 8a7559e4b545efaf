"""One bad node among others: the examples go on without it."""

import pytest

from tests.cli.conftest import Broker, Commands
from tests.cli.counting import EXAMPLES

pytestmark = pytest.mark.timeout(180)

#: Each message is answered with something else that no ServerApp expects.
ROGUE = """
import numpy as np
from brokerfl.client import ClientApp
from brokerfl.common import MetricsRecord, ParametersRecord, RecordSet

app = ClientApp()
metrics = MetricsRecord({"num-examples": 9, "version": 0, "n": 1, "accuracy": float("nan")})
odd = [[np.full((64, 10), np.nan, np.float32), np.zeros(10, np.float32)], [np.zeros(3)], []]
count = 0


@app.evaluate()
@app.train()
def answer(message, context):
    global count
    count += 1
    model = ParametersRecord(odd[count % 3])
    return message.create_reply(RecordSet({"model": model, "delta": model}, {"metrics": metrics}))
"""


@pytest.mark.parametrize(
    ("example", "config"),
    [
        ("digits", 'model="softmax" num-rounds=3 min-nodes=2'),
        ("fedbuff", "num-versions=3 buffer-size=1 min-nodes=2"),
    ],
)
def test_an_example_goes_on(commands: Commands, broker: Broker, example: str, config: str) -> None:
    """The replies of the bad node are Errors that say what differs, and the run completes with those of the other."""
    pytest.importorskip("sklearn")
    folder = str(EXAMPLES / example)
    commands.write("rogue.py", ROGUE)
    good = commands.start(
        "brokerfl-node", "client:app", "--app-dir", folder, "--node-config", "partition-id=0 num-partitions=2"
    )
    bad = commands.start("brokerfl-node", "rogue:app")
    for node in (good, bad):
        node.wait_for("serves")
    run = commands.run("brokerfl-server", "server:app", "--app-dir", folder, "--run-config", config)
    run.wait_for("answered with error 4: the reply does not fit: ParametersRecord '(model|delta)': ")
    run.wait_for("Finished: ")
