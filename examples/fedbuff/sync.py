"""The same in rounds, for comparison: every version is made of one update of each node, and waits for the slowest.

With a buffer of as many updates as there are nodes and no staleness FedBuff is federated averaging, so all but the
order of waiting is server.py's. Run it with ``brokerfl-server sync:app --run-config 'num-versions=20'``.
"""

import time
from logging import INFO

from server import Buffer, failed, push, read_config, report, restore, save, update_of

from brokerfl.common import Context, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Make num-versions versions, or what a resumed run has left of them. It has no use for buffer-size."""
    config = read_config(context)
    model, version = restore(context)
    driver.wait_for_nodes(config["min-nodes"])
    started = time.perf_counter()
    while version < config["num-versions"]:
        buffer = Buffer()
        # A new group each round: its push saves the state and settles the replies of the last round.
        busy = push(driver, model, version, config, driver.wait_for_nodes(1), f"round {version + 1}")
        for reply in driver.replies(busy, like=update_of(model)):
            if not failed(reply):
                buffer.add(reply, version)
        if not buffer.updates:
            raise RuntimeError("every node that is online fails; the log shows why")
        model, version = buffer.apply_to(model, config["server-lr"]), version + 1
        report(buffer, model, version, started, config["history"])
        save(context, model, version)
    log(INFO, "Finished: version %s", version)
