"""A node serves several runs fairly in turn."""

import threading

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message
from tests.apps import driving, federation, number
from tests.conftest import Backend

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)


def test_a_run_with_much_work_does_not_keep_another_waiting(backend: Backend) -> None:
    """While one run has twenty messages waiting on a node, another run's only message is served among the first."""
    order: list[int] = []
    begun, go = threading.Event(), threading.Event()
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order.append(context.run_id)
        begun.set()
        assert go.wait(20)
        return message.create_reply(message.content)

    with federation(backend, app, nodes=1) as nodes, driving(backend) as greedy, driving(backend) as modest:
        node = nodes.nodes[0].node_id
        many = greedy.push_messages([greedy.create_message(number(i), "train", node, "1") for i in range(20)])
        assert begun.wait(10)
        one = modest.push_messages([modest.create_message(number(1), "train", node, "1")])
        go.set()
        assert len(list(modest.replies(one))) == 1
        assert len(list(greedy.replies(many))) == 20
    assert order.index(modest.run.run_id) <= 2
