"""`brokerfl show`: everything that is known of one run or one node. Owns how that is asked for."""

import click

from brokerfl.broker.memory import memory_of_runs
from brokerfl.cli.details import held_lines, metric_lines, node_lines, run_lines
from brokerfl.cli.exits import Command
from brokerfl.cli.options import RedisOptions, Text, redis_options
from brokerfl.cli.references import node_called, run_called
from brokerfl.cli.tables import format_option, show_lines, show_text, to_json
from brokerfl.common import ConfigError
from brokerfl.view.history import metrics_of
from brokerfl.view.overview import read_overview
from brokerfl.view.shape import node_to_json, run_to_json


@click.command(cls=Command)
@click.argument("words", type=Text(), nargs=-1, required=True, metavar="RUN | node NODE")
@redis_options
@format_option
def show(words: tuple[str, ...], redis: RedisOptions, form: str) -> None:
    """Show everything that is known of the run RUN, or of the node NODE.

    Each is named by its id, by at least four digits with which no other id begins, or by its name. `brokerfl show run
    RUN` also shows a run.
    """
    kind, name = words if len(words) == 2 else ("run", words[0])
    if len(words) > 2 or kind not in ("run", "node"):
        raise ConfigError(f"{' '.join(words)!r} is neither RUN nor node NODE: quote a name with blanks")
    connection = redis.connect()
    overview = read_overview(connection)
    if kind == "run":
        run = run_called(connection, overview, name)
        held = None if run.is_over else memory_of_runs(connection, [run.run_id])[run.run_id]
        lines, record = run_lines(run, overview), run_to_json(run, overview.at, held)
        lines += held_lines(held) if held else []
        lines += metric_lines(metrics_of(connection, run.run_id))
    else:
        node = node_called(connection, overview, name)
        lines, record = node_lines(node, overview), node_to_json(node, overview.at)
    if form == "json":
        show_text(to_json(record))
    else:
        show_lines(lines)
