"""ServerApps under accidents. Each returns what can be compared with a calculation made without any broker."""

from typing import Any

from brokerfl.common import MetricsRecord
from brokerfl.server import Driver
from tests.apps import number
from tests.crash.world import World

ROUNDS = 3


def value_of(server_round: int, index: int) -> int:
    """What a node is sent: every pair of round and node has its own power of ten, so that every error shows."""
    return 10 ** (server_round * 2 + index)


EXPECTED = sum(3 * value_of(server_round, index) for server_round in range(ROUNDS) for index in range(2))


def _books(driver: Driver) -> Any:
    return driver.context.state.metrics_records.setdefault("books", MetricsRecord({"round": 0, "sum": 0}))


def _send(driver: Driver, nodes: list[int], server_round: int, group: str, extra: int = 0) -> list[str]:
    driver.wait_for_nodes(len(nodes))
    return driver.push_messages(
        [
            driver.create_message(number(value_of(server_round, index) + extra), "train", node, group)
            for index, node in enumerate(nodes)
        ]
    )


def _value(reply: Any) -> int:
    assert reply.has_content(), reply.error
    value: int = reply.content.metrics_records["m"]["n"]
    return value


def state_kept(driver: Driver, world: World, start: int) -> int:
    """Goes on at the round that its state tells."""
    books = _books(driver)
    for server_round in range(books["round"], ROUNDS):
        for reply in driver.replies(_send(driver, world.node_ids, server_round, str(server_round))):
            books["sum"] += _value(reply)
        books["round"] = server_round + 1
    return int(books["sum"])


def state_ignored(driver: Driver, world: World, start: int) -> int:
    """Begins at its first round whenever it is started."""
    total = 0
    for server_round in range(ROUNDS):
        for reply in driver.replies(_send(driver, world.node_ids, server_round, str(server_round))):
            total += _value(reply)
    return total


def content_changes(driver: Driver, world: World, start: int) -> int:
    """Is not repeatable: what it pushes again after a resume is a little different. Rounds away what it added."""
    books = _books(driver)
    for server_round in range(books["round"], ROUNDS):
        extra = 10**9 * start
        for reply in driver.replies(_send(driver, world.node_ids, server_round, str(server_round), extra)):
            books["sum"] += _value(reply) % (3 * 10**9)
        books["round"] = server_round + 1
    return int(books["sum"])


def one_group(driver: Driver, world: World, start: int) -> int:
    """Uses one group for all rounds, and commits by a checkpoint."""
    books = _books(driver)
    for server_round in range(books["round"], ROUNDS):
        for reply in driver.replies(_send(driver, world.node_ids, server_round, "all")):
            books["sum"] += _value(reply)
        books["round"] = server_round + 1
        driver.checkpoint()
    return int(books["sum"])


def asynchronous(driver: Driver, world: World, start: int) -> int:
    """Sends each node its next message as soon as the last came back, and commits after each reply."""
    state = driver.context.state.metrics_records
    books = state.setdefault("books", MetricsRecord({"sum": 0}))
    sent = state.setdefault("sent", MetricsRecord({str(node): 0 for node in world.node_ids}))
    nodes = world.node_ids
    waiting: dict[str, int] = {}

    def push(node: int) -> None:
        driver.wait_for_nodes(len(nodes))
        value = value_of(int(sent[str(node)]), nodes.index(node))  # type: ignore[arg-type]
        [message_id] = driver.push_messages([driver.create_message(number(value), "train", node, "all")])
        waiting[message_id] = node

    for node in nodes:
        if sent[str(node)] < ROUNDS:  # type: ignore[operator]
            push(node)
    while waiting:
        reply = next(iter(driver.replies(list(waiting))))
        node = waiting.pop(reply.metadata.reply_to_message)
        books["sum"] += _value(reply)  # type: ignore[operator]
        sent[str(node)] += 1  # type: ignore[operator]
        driver.checkpoint()
        if sent[str(node)] < ROUNDS:  # type: ignore[operator]
            push(node)
    return int(books["sum"])  # type: ignore[arg-type]


def another_sample(driver: Driver, world: World, start: int) -> int:
    """Chooses other nodes of three whenever it is started, and counts what came from whom."""
    state = driver.context.state.metrics_records
    books = state.setdefault("books", MetricsRecord({"round": 0, "sum": 0, "should": 0, "replies": 0}))
    for server_round in range(int(books["round"]), ROUNDS):  # type: ignore[arg-type]
        left_out = (server_round + start) % 3
        chosen = [node for index, node in enumerate(world.node_ids) if index != left_out]
        value = {node: 10 ** (3 * server_round + index) for index, node in enumerate(world.node_ids)}
        driver.wait_for_nodes(len(value))
        group = str(server_round)
        ids = driver.push_messages(
            [driver.create_message(number(value[node]), "train", node, group) for node in chosen]
        )
        for reply in driver.replies(ids):
            books["sum"] += _value(reply)  # type: ignore[operator]
            books["should"] += 3 * value[reply.metadata.src_node_id]  # type: ignore[operator]
            books["replies"] += 1  # type: ignore[operator]
        books["round"] = server_round + 1
    assert books["replies"] == 2 * ROUNDS, books
    assert books["sum"] == books["should"], books
    return EXPECTED


PROGRAMS = {
    program.__name__: program
    for program in (state_kept, state_ignored, content_changes, one_group, asynchronous, another_sample)
}

#: Programs that may have a message executed again under another id, or execute what is then cancelled.
REPEATING = {"state_ignored", "another_sample"}

#: How many nodes a program has.
NODES = {"another_sample": 3}
