"""`brokerfl runs` and `brokerfl stop`. Owns what is told of each run in a row."""

from typing import Any

import click

from brokerfl.broker.ending import stop_run
from brokerfl.broker.memory import RunMemory, memory_of_runs
from brokerfl.cli.cells import answered, has_said, name_of, since, state_cell, waiting_for, why
from brokerfl.cli.exits import Command
from brokerfl.cli.options import RedisOptions, Text, redis_options
from brokerfl.cli.references import find_run
from brokerfl.cli.tables import format_option, show, show_done
from brokerfl.common.text import sized
from brokerfl.view.overview import RunView, read_overview
from brokerfl.view.reasons import OVER, RunState
from brokerfl.view.shape import held_to_json, run_to_json


@click.command(cls=Command)
@redis_options
@format_option
@click.option("--all", "ended_too", is_flag=True, help="Also list runs that have ended.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in RunState]),
    help="List the runs in this state; may be repeated.",
)
@click.option("--memory", "by_memory", is_flag=True, help="List what each run holds in Redis, the largest first.")
def runs(redis: RedisOptions, form: str, ended_too: bool, states: tuple[str, ...], by_memory: bool) -> None:
    """List the runs, and why each of them does not get on."""
    connection = redis.connect()
    found = read_overview(connection)
    wanted = set(states or [state for state in RunState if ended_too or state not in OVER])
    listed = [run for run in found.runs if run.state in wanted]
    nothing = "no runs" if ended_too else "no runs; --all also lists those that have ended"
    held: dict[int, RunMemory] = {}
    if by_memory:
        held = memory_of_runs(connection, [run.run_id for run in listed if not run.is_over])
        listed.sort(key=lambda run: -held.get(run.run_id, RunMemory()).total)
    if form == "json":
        rows = [run_to_json(run, found.at, held.get(run.run_id)) for run in listed]
    else:
        rows = [memory_row(run, held.get(run.run_id)) if by_memory else run_row(run, found.at) for run in listed]
    show(rows, form, "no runs in this state" if states else nothing)


@click.command(cls=Command)
@click.argument("run", type=Text())
@redis_options
@format_option
def stop(run: str, redis: RedisOptions, form: str) -> None:
    """Stop the run RUN and delete its keys.

    RUN is its id, at least four digits with which only its id begins, or its name. It makes no difference whether its
    ServerApp is alive.
    """
    connection = redis.connect()
    run_id = find_run(connection, run)
    stop_run(connection, run_id)
    text = f"Run {run_id} is stopped and its keys are deleted."
    show_done({"run": str(run_id), "state": RunState.STOPPED}, text, form)


def run_row(run: RunView, now: float) -> dict[str, Any]:
    """Return the cells of a run."""
    status, is_told = run.status, has_said(run)
    return {
        "run": run.short.removesuffix("…"),
        "name": name_of(run),
        "app": run.run.app if run.run else "",
        "state": state_cell(run.state),
        "round": status.group,
        "answered": answered(run),
        "errors": status.errors if is_told or (run.run and run.is_over) else None,
        "waiting for": waiting_for(run),
        "age": since(run.run.created_at if run.run else 0.0, now),
        "memory": sized(status.memory) if is_told else None,
        "why": why(run, now),
    }


def memory_row(run: RunView, held: RunMemory | None) -> dict[str, Any]:
    """Return the cells of a run and what it holds in Redis; None if it has ended."""
    parts = held_to_json(held or RunMemory())
    return {
        "run": run.short.removesuffix("…"),
        "name": name_of(run),
        "state": state_cell(run.state),
        "nodes": run.nodes if run.run else None,
        **{name: sized(size) if held else None for name, size in parts.items()},
    }
