"""`brokerfl doctor`: what may be wrong with a Redis, in one table. Owns its options, and which finding is a failure."""

import sys

import click

from brokerfl.broker.checkup import Need, Status, look_over
from brokerfl.broker.presence import count_online
from brokerfl.cli.exits import Command, Exit
from brokerfl.cli.options import Bytes, RedisOptions, redis_options
from brokerfl.cli.tables import format_option, show


@click.command(cls=Command)
@redis_options
@format_option
@click.option("--model", type=Bytes(), help="Size of the model, to compare with the memory of Redis, e.g. 400MB.")
@click.option(
    "--nodes", type=click.IntRange(min=1), help="With --model: nodes of a run. [default: those that are online]"
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=1, show_default=True, help="With --model: runs at the same time."
)
def doctor(redis: RedisOptions, form: str, model: int | None, nodes: int | None, runs: int) -> None:
    """Check Redis, and what this machine has to do with it.

    It shows the server and its settings, latency, clocks, memory, permissions and the registry, and what to do about
    what is wrong. A problem is exit code 50.
    """
    connection = redis.connect(warn=False)
    need = None if model is None else Need(model, nodes or max(1, count_online(connection)), runs)
    findings = look_over(connection, need)
    rows = [
        {"check": each.check, "status": each.status.value, "found": each.found, "advice": each.advice}
        for each in findings
    ]
    show(rows, form, "")
    if any(each.status is Status.PROBLEM for each in findings):
        sys.exit(Exit.UNHEALTHY)
