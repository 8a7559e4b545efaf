"""Counts the messages it has executed. Run it with ``brokerfl-node client:app --name NAME``; only named nodes return.

Node config: ``seconds`` (2), which a message takes.
"""

import time
from logging import INFO

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, MetricsRecord, RecordSet, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the number of this message in the run. The state is saved together with the reply, or not at all."""
    executed = context.state.metrics_records.setdefault("executed", MetricsRecord({"n": 0}))
    executed["n"] += 1
    log(INFO, "Executing message %s of run %s", executed["n"], context.run_id)
    time.sleep(context.node_config.get("seconds", 2))
    return message.create_reply(RecordSet(metrics_records={"executed": executed}))
