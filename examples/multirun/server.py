"""Three rounds with two nodes each. Run it with ``brokerfl-server server:app``, in several terminals at once."""

import random
import time
from logging import INFO

from brokerfl.common import Context, Message, MessageType, RecordSet, log
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    """Send an empty message to a sample of the nodes and collect the replies, round by round."""
    num_nodes_per_round = 2
    num_rounds = 3

    for server_round in range(1, num_rounds + 1):
        log(INFO, f"Starting server round {server_round}")

        # Wait until there are enough nodes, and sample from them.
        while True:
            all_node_ids = driver.get_node_ids()
            if len(all_node_ids) >= num_nodes_per_round:
                node_ids = random.sample(all_node_ids, num_nodes_per_round)
                break
            time.sleep(1)

        # One message for each node, of this round's group.
        messages = [
            driver.create_message(
                content=RecordSet(),
                message_type=MessageType.TRAIN,
                dst_node_id=node_id,
                group_id=str(server_round),
            )
            for node_id in node_ids
        ]

        # Push them. The id of a message that was refused is empty.
        message_ids = [message_id for message_id in driver.push_messages(messages) if message_id != ""]

        # Pull until every message has its reply. A reply is pulled only once.
        all_replies: list[Message] = []
        while True:
            replies = driver.pull_messages(message_ids)
            log(INFO, f"Pulled {len(replies)} result(s)")
            all_replies += replies
            if len(all_replies) == len(message_ids):
                break
            time.sleep(1)

        # A node that failed replied with an error instead of content.
        all_replies = [reply for reply in all_replies if reply.has_content()]
        src_node_ids = [reply.metadata.src_node_id for reply in all_replies]
        log(INFO, f"Received replies from node IDs: {src_node_ids}")

    log(INFO, "Multi-run example complete!")
