"""The same rounds as steps, without a state. Run it with ``brokerfl-server steps:app``, then with --resume.

Run config: ``num-rounds`` (10) and ``min-nodes`` (2).
"""

from logging import INFO

from brokerfl.common import Context, MessageType, MetricsRecord, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Add up what the nodes reply; a resumed run is given the results of the rounds that are over."""
    rounds, min_nodes = context.run_config.get("num-rounds", 10), context.run_config.get("min-nodes", 2)
    total = sum(driver.step(f"round {number}", ask, driver, number, min_nodes) for number in range(1, rounds + 1))
    log(INFO, "The sum is %s after %s rounds", total, rounds)


def ask(driver: Driver, server_round: int, min_nodes: int) -> int:
    """Return the sum of what the nodes reply in one round."""
    log(INFO, "Starting server round %s", server_round)
    nodes = driver.wait_for_nodes(min_nodes)
    messages = [driver.create_message(RecordSet(), MessageType.TRAIN, node, str(server_round)) for node in nodes]
    replies = driver.send_and_receive(messages, like=RecordSet(metrics_records={"executed": MetricsRecord({"n": 0})}))
    return sum(reply.content.metrics_records["executed"]["n"] for reply in replies if reply.has_content())
