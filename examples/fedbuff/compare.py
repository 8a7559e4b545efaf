"""Measures FedBuff against the same in rounds, with one straggler among the nodes; prints a table in Markdown.

``python compare.py --help`` tells the options. It starts everything it needs with brokerfl's own commands: a server
with ``brokerfl up``, the nodes, and one run after the other, each with its `seed`. The time is that of the ServerApp,
from its first message to the last version.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

#: Seconds that a training takes on all nodes except the straggler.
SECONDS = 0.2


@dataclass(frozen=True)
class Result:
    """The result of one run.

    Attributes:
        seconds: until the last version.
        accuracy: of the last version on the held-out digits, 0 to 1.
        reached: seconds until the first version with the target accuracy; infinite if there was none.
        straggler: share of the updates that the slowest node made, 0 to 1.
    """

    seconds: float
    accuracy: float
    reached: float
    straggler: float


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5, help="how many, of which the last is the straggler (5)")
    parser.add_argument("--slowdown", type=float, default=10, help="how many times slower it is (10)")
    parser.add_argument("--updates", type=int, default=100, help="updates in each run (100)")
    parser.add_argument("--target", type=float, default=0.93, help="the accuracy to reach (0.93)")
    parser.add_argument("--seeds", type=int, default=3, help="how often each run is made (3)")
    given = parser.parse_args()
    apps = {"in rounds": ("sync:app", given.nodes)}
    apps |= {f"FedBuff, buffer of {size}": ("server:app", size) for size in (2, 5)}
    results: dict[str, list[Result]] = {name: [] for name in apps}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedbuff-")))
        redis = start_everything(stack, folder, given.nodes, given.slowdown)
        for seed in range(given.seeds):
            for name, (app, size) in apps.items():
                # The straggler may still work on a message that the last run no longer wants.
                time.sleep(2 * SECONDS * given.slowdown)
                history = folder / f"{app}-{size}-{seed}"
                config = f"num-versions={given.updates // size} min-nodes={given.nodes} seed={seed}"
                config += f" buffer-size={size} history={json.dumps(str(history))}"
                print(f"{name}, seed {seed}", file=sys.stderr)
                subprocess.run([*command("brokerfl-server", app), *redis, "--run-config", config], check=True)
                results[name].append(read_result(history, given.target, given.nodes))
    print(f"\nPython {platform.python_version()}, {os.cpu_count()} cores, {' '.join(sys.argv)}\n")
    print_table(results, given.updates, given.target)


def start_everything(stack: ExitStack, folder: Path, nodes: int, slowdown: float) -> list[str]:
    """Start the server and the nodes, which end with the stack; return the options that name the server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    up = stack.enter_context(running(command("brokerfl", "up", "--port", str(port)), folder / "up"))
    await_text(up, folder / "up", "is up at")
    redis = ["--redis", f"redis://127.0.0.1:{port}"]
    processes = []
    for index in range(nodes):
        slow = slowdown if index == nodes - 1 else 1
        config = f"partition-id={index} num-partitions={nodes} seconds={SECONDS} slowdown={slow}"
        arguments = [*command("brokerfl-node", "client:app"), *redis, "--grace", "1", "--node-config", config]
        processes.append(stack.enter_context(running(arguments, folder / f"node-{index}")))
    for index, process in enumerate(processes):
        await_text(process, folder / f"node-{index}", "serves client:app")
    return redis


def command(name: str, *arguments: str) -> list[str]:
    """Return the command line of one of brokerfl's commands, as installed next to this Python."""
    return [str(Path(sys.executable).with_name(name)), *arguments]


@contextmanager
def running(arguments: Sequence[str], log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a command until the block ends; its output goes to a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, cwd=HERE, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def await_text(process: "subprocess.Popen[bytes]", log: Path, text: str) -> None:
    """Wait until a command has printed this."""
    while text not in log.read_text():
        if process.poll() is not None:
            sys.exit(f"{log.name} ended with {process.returncode}:\n{log.read_text()}")
        time.sleep(0.05)


def read_result(history: Path, target: float, count: int) -> Result:
    """Return the result that the history of a run with so many nodes shows."""
    versions = [json.loads(line) for line in history.read_text().splitlines()]
    shares = Counter(update.split()[0] for version in versions for update in version["updates"])
    fewest = min(shares.values()) if len(shares) == count else 0
    reached = [version["seconds"] for version in versions if version["accuracy"] >= target]
    seconds, accuracy = versions[-1]["seconds"], versions[-1]["accuracy"]
    return Result(seconds, accuracy, min(reached, default=float("inf")), fewest / shares.total())


def print_table(results: dict[str, list[Result]], updates: int, target: float) -> None:
    """Print the median of each figure, and the lowest and the highest."""
    titles = (f"seconds for {updates} updates", "accuracy then", f"seconds to {target:g}", "straggler's share")
    print(f"| | {' | '.join(titles)} |")
    print(f"|---|{'--:|' * len(titles)}")
    for name, found in results.items():
        cells = [
            spread([result.seconds for result in found], ".1f"),
            spread([result.accuracy for result in found], ".3f"),
            spread([result.reached for result in found], ".1f"),
            spread([result.straggler for result in found], ".0%"),
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: list[float], form: str) -> str:
    """Return the median, and the extremes where they differ."""
    median, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"


if __name__ == "__main__":
    main()
