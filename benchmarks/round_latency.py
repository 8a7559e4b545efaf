"""How long one empty round takes: a small message to N node processes and N replies back.

Prints brokerfl's round beside the same work in bare redis-py commands on the same server, taken in turns in one run,
and the ratio of their medians. Bare means: one stream a node, XADD to each in a pipeline, XREADGROUP in each process,
XADD of the reply with XACK and XDEL in a pipeline, XREAD of one reply stream until all have come. No ledger, no
fence, no records.

    python benchmarks/round_latency.py [--nodes 5] [--rounds 300]
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable

import redis

from brokerfl.broker.connection import connect
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.broker.nodes import Registration
from brokerfl.client import ClientApp
from brokerfl.client.node import Node
from brokerfl.common import Context, Message, MessageType, RecordSet
from brokerfl.server import Driver

TURNS = 6


def serve(url: str) -> None:
    """One brokerfl node."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_reply(message.content)

    connection = connect(url)
    Node(app, connection, Registration(connection)).serve()


def serve_bare(url: str, name: str) -> None:
    """The same in bare commands."""
    client = redis.Redis.from_url(url, socket_timeout=10)
    client.xgroup_create(f"bare:in:{name}", "g", id="0", mkstream=True)
    while True:
        for _, entries in client.xreadgroup("g", name, {f"bare:in:{name}": ">"}, count=16, block=2000):
            with client.pipeline(transaction=False) as pipe:
                for entry_id, fields in entries:
                    pipe.xadd("bare:out", fields)
                    pipe.xack(f"bare:in:{name}", "g", entry_id)
                    pipe.xdel(f"bare:in:{name}", entry_id)
                pipe.execute()


def bare_round(client: redis.Redis, names: list[str]) -> Callable[[], None]:
    """Return a function that makes one bare round."""
    cursor = "0"

    def round_() -> None:
        nonlocal cursor
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.xadd(f"bare:in:{name}", {"h": b"", "c": b""})
            pipe.execute()
        missing, seen = len(names), []
        while missing:
            for _, entries in client.xread({"bare:out": cursor}, block=2000):
                cursor = entries[-1][0]
                seen += [entry_id for entry_id, _ in entries]
                missing -= len(entries)
        client.xdel("bare:out", *seen)

    return round_


def driver_round(driver: Driver, nodes: list[int]) -> Callable[[], None]:
    """Return a function that makes one round through the public interface."""
    turn = 0

    def round_() -> None:
        nonlocal turn
        turn += 1
        content = RecordSet()
        batch = [driver.create_message(content, MessageType.TRAIN, node, str(turn)) for node in nodes]
        replies = driver.send_and_receive(batch)
        assert len(replies) == len(nodes)
        assert all(reply.has_content() for reply in replies)

    return round_


def measure(round_: Callable[[], None], rounds: int) -> list[float]:
    """Return seconds per round."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        round_()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with EmbeddedServer() as server:
        names = [str(index) for index in range(arguments.nodes)]
        processes = [context.Process(target=serve, args=(server.url,), daemon=True) for _ in names]
        processes += [context.Process(target=serve_bare, args=(server.url, name), daemon=True) for name in names]
        for process in processes:
            process.start()
        driver = Driver(connect(server.url), "benchmark")
        nodes = driver.wait_for_nodes(arguments.nodes, timeout=60)
        client = redis.Redis.from_url(server.url, socket_timeout=10)
        while not all(client.exists(f"bare:in:{name}") for name in names):
            time.sleep(0.01)
        rivals = {"brokerfl": driver_round(driver, nodes), "bare redis-py": bare_round(client, names)}
        seconds: dict[str, list[float]] = {name: [] for name in rivals}
        for round_ in rivals.values():
            measure(round_, 20)
        for _ in range(TURNS):
            for name, round_ in rivals.items():
                seconds[name] += measure(round_, arguments.rounds // TURNS)
        driver.end()
        for process in processes:
            process.kill()
    print(
        f"Python {platform.python_version()}, redis-py {redis.__version__}, {os.cpu_count()} cores, "
        f"{arguments.nodes} node processes, {len(seconds['brokerfl'])} rounds each, in {TURNS} turns"
    )
    print(f"{'':16}{'median':>10}{'p95':>10}   of one empty round")
    for name, found in seconds.items():
        ordered = sorted(found)
        print(f"{name:16}{statistics.median(found) * 1e3:8.2f}ms{ordered[int(len(ordered) * 0.95)] * 1e3:8.2f}ms")
    ratio = statistics.median(seconds["brokerfl"]) / statistics.median(seconds["bare redis-py"])
    print(f"ratio of the medians: {ratio:.2f}")


if __name__ == "__main__":
    main()
