"""`--record` of `brokerfl-server`, and `brokerfl replay`: recorded replies for an app that begins again.

Owns where a recording is, and what is said of a replay. It must not know what a recording has.
"""

import sys
from collections.abc import Callable
from functools import partial
from logging import DEBUG, INFO, WARNING
from pathlib import Path
from typing import cast

import click

from brokerfl.broker.keys import parse_id
from brokerfl.cli.apps import find_project, load_server_app, print_traceback
from brokerfl.cli.configs import parse_config
from brokerfl.cli.exits import Command, Exit
from brokerfl.cli.logs import adopt_log_of, log_options
from brokerfl.cli.options import FilePath, Text, app_dir_option, run_config_option
from brokerfl.common import ConfigError, log
from brokerfl.common.log_context import log_for
from brokerfl.common.logger import configure_logging
from brokerfl.server import Driver
from brokerfl.server.recorder import Recorder
from brokerfl.server.rehearsal import Rehearsal
from brokerfl.server.tape import SUFFIX, Recorded, Tape, prepare


def driver_of(folder: Path | None, limit: int, *, is_new: bool = False) -> Callable[..., Driver]:
    """Return what makes a Driver: one that records to a directory, if there is one."""
    if folder is None:
        return Driver
    if is_new:  # before there is a run
        prepare(folder)
    return partial(Recorder, partial(Tape, folder, limit=limit, is_new=is_new))


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=FilePath(file_okay=False, path_type=Path))
@click.argument("app")
@log_options
@click.option("--run", type=Text(), help="Whose replies these are, by the beginning of its id. [default: the only one]")
@run_config_option
@app_dir_option
@click.option("--verbose", is_flag=True, help="Log more.")
def replay(
    folder: Path, app: str, run: str | None, run_config: tuple[str, ...], app_dir: str | None, verbose: bool
) -> None:
    """Run the ServerApp APP with the replies that were recorded to DIR, without Redis and nodes.

    The n-th message of a type to a node gets the reply that the n-th such message got. So another strategy, or another
    config, shows what it would have made of the same replies.
    """
    configure_logging(DEBUG if verbose else INFO)
    path = _tape_in(folder, run)
    reference, project = find_project(app, app_dir)
    given = parse_config(run_config, "--run-config", project.defaults)
    _, server_app = load_server_app(reference, project)
    adopt_log_of("flwr")
    with path.open("rb") as file:
        tape = Recorded(file)
        if tape.reason:
            raise ConfigError(f"{path} has no replies: {tape.reason}")
        rehearsal = Rehearsal(tape, given)
        log_for(run=rehearsal.run.run_id)
        try:
            server_app(cast("Driver", rehearsal), rehearsal.context)
        except Exception as error:
            print_traceback(error)
            sys.exit(Exit.APP_RAISED)
    replayed, lacking = rehearsal.replayed, rehearsal.unanswered
    log(INFO, "%s recorded replies of run %s were replayed", replayed, rehearsal.run.run_id)
    if lacking:
        log(WARNING, "%s messages got an Error: the recording has no reply for them", lacking)


def _tape_in(folder: Path, run: str | None) -> Path:
    """Return the file of the recording that is meant.

    Raises:
        ConfigError: there is none, or there are several.
    """
    tapes = sorted(path for path in folder.glob(f"*{SUFFIX}") if parse_id(path.stem.encode()) is not None)
    found = [path for path in tapes if path.stem.startswith(run or "")]
    if len(found) == 1:
        return found[0]
    whose = f" of run {run!r}" if run is not None else ""
    if not found:
        raise ConfigError(f"{folder} has no recording{whose}: give the directory of --record")
    listed = ", ".join(path.stem for path in found[:8])
    raise ConfigError(f"{folder} has {len(found)} recordings{whose}: name one with --run: {listed}")
