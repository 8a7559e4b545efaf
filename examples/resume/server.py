"""Rounds that continue after a crash. Run it with ``brokerfl-server server:app``, then with --resume.

Run config: ``num-rounds`` (10) and ``min-nodes`` (2).
"""

from logging import INFO

from brokerfl.common import Context, MessageType, MetricsRecord, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Add up what the nodes reply, round by round; `done` holds the rounds that are over and their sum."""
    done = context.state.metrics_records.setdefault("done", MetricsRecord({"rounds": 0, "sum": 0}))
    for server_round in range(done["rounds"] + 1, context.run_config.get("num-rounds", 10) + 1):
        log(INFO, "Starting server round %s", server_round)
        nodes = driver.wait_for_nodes(context.run_config.get("min-nodes", 2))
        messages = [driver.create_message(RecordSet(), MessageType.TRAIN, node, str(server_round)) for node in nodes]
        # The first push of a new group saves the state, in the transaction that settles the earlier replies.
        like = RecordSet(metrics_records={"executed": MetricsRecord({"n": 0})})
        replies = driver.send_and_receive(messages, like=like)
        done["sum"] += sum(reply.content.metrics_records["executed"]["n"] for reply in replies if reply.has_content())
        done["rounds"] = server_round
    log(INFO, "The sum is %s after %s rounds", done["sum"], done["rounds"])
