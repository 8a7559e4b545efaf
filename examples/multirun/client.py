"""Echoes what it receives. Run it with ``brokerfl-node client:app``."""

from logging import INFO

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message, log

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Send the content back. A real app would train a model here."""
    log(INFO, "Echoing a `train` message of run %s", context.run_id)
    return message.create_reply(message.content)
