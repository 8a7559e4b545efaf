"""The delivery: messages into the inboxes and out again, with all that a first contact with a node takes.

Owns the order of those commands. It must not know the ledger, or who waits for a reply.
"""

from collections.abc import Iterable

from brokerfl.broker.attachment import Attachment
from brokerfl.broker.connection import Connection, Pipeline
from brokerfl.broker.inbox import add_message, open_inbox, remove_message, ring
from brokerfl.broker.keys import milliseconds
from brokerfl.broker.ledger import OpenMessage
from brokerfl.wire.run import Run, encode_run


class Delivery:
    """Puts the messages of one run into transactions."""

    def __init__(self, connection: Connection, run: Run, attachment: Attachment) -> None:
        self._keys = connection.keys
        self._run_id = run.run_id
        self._frame = encode_run(run)
        self._attachment = attachment

    def deliver(self, pipe: Pipeline, messages: Iterable[OpenMessage], first: Iterable[int]) -> None:
        """Put inbox entries into ``pipe``, as its last commands; before them first contact with the nodes ``first``.

        The result of each entry is its id, or None where the node has no inbox for this run: first contact again.
        """
        keys, run = self._keys, self._run_id
        for node in first:
            pipe.sadd(keys.run_nodes(run), str(node))
            pipe.pexpire(keys.run_nodes(run), milliseconds(self._attachment.retention))
            open_inbox(pipe, keys, node, run, self._frame)
            self._attachment.expire_node(pipe, node)
            ring(pipe, keys, node)
        for message in messages:
            assert message.fields is not None, "only what was encoded is delivered"
            add_message(pipe, keys, message.node_id, run, message.fields)


def take_back(pipe: Pipeline, connection: Connection, run_id: int, message: OpenMessage) -> None:
    """Put into ``pipe`` that a message is not to be executed any more."""
    if message.inbox_entries:
        remove_message(pipe, connection.keys, message.node_id, run_id, *message.inbox_entries)
