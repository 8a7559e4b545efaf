"""`brokerfl gate`: what waits at the gates of this machine's nodes, and what the site decides about it.

Owns how that is shown, and which run is meant. It reads and writes the state directories of nodes, and needs no Redis:
the site decides.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from brokerfl.broker.keys import parse_id
from brokerfl.cli.exits import Command, Group
from brokerfl.cli.options import Text, state_dir_option
from brokerfl.cli.tables import format_option, local_time, show, show_done
from brokerfl.client.folder import default_state_dir
from brokerfl.client.gate_folder import Entry, Verdict, gate_folders
from brokerfl.common import RunNotFound
from brokerfl.common.text import shown

#: Digits of an id that name a run, and the fewest of an id that is written in full.
_LEAST, _FULL = 4, 16

_run = click.argument("run", type=Text())


@click.group(cls=Group)
def gate() -> None:
    """Decide which runs the nodes of this machine execute.

    A node with --gate holds back what its file does not allow.
    """


@gate.command("list", cls=Command)
@state_dir_option
@format_option
def list_(state_dir: Path | None, form: str) -> None:
    """List the runs that wait at a gate, and those that were approved or denied."""
    folder = state_dir or default_state_dir()
    entries = sorted(_entries(folder), key=lambda entry: (entry.node_id, entry.record.get("since") or 0.0))
    show([_row(entry) for entry in entries], form, f"no run waits at a gate in {shown(str(folder))}")


@gate.command(cls=Command)
@_run
@state_dir_option
@format_option
def approve(run: str, state_dir: Path | None, form: str) -> None:
    """Let the nodes of this machine execute the run RUN.

    RUN is its id, or at least four digits with which the id of no other listed run begins. The hours, and the most
    messages an hour, still hold.
    """
    _decide(run, state_dir, form, Verdict.APPROVED)


@gate.command(cls=Command)
@_run
@state_dir_option
@format_option
def deny(run: str, state_dir: Path | None, form: str) -> None:
    """Let the nodes of this machine answer all further messages of the run RUN with an Error."""
    _decide(run, state_dir, form, Verdict.DENIED)


def _entries(folder: Path) -> list[Entry]:
    return [entry for each in gate_folders(folder) for entry in each.entries()]


def _decide(text: str, state_dir: Path | None, form: str, verdict: Verdict) -> None:
    folder = state_dir or default_state_dir()
    run_id, known = _found(text, folder)
    record = {key: value for key, value in known.items() if key not in ("why", "until")}
    folders = gate_folders(folder)
    for each in folders:
        each.decide(run_id, verdict, {**record, "decided": time.time()})
    nodes = [each.path.parent.name for each in folders]
    text = f"Run {run_id} is {verdict} at {'node' if len(nodes) == 1 else 'nodes'} {', '.join(nodes)}."
    show_done({"run": str(run_id), "state": str(verdict), "nodes": " ".join(nodes)}, text, form)


def _found(text: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the run that is meant, and what is known of it: nothing of an id in full that waits nowhere."""
    entries = _entries(folder)
    meant = {entry.run_id: entry.record for entry in entries if str(entry.run_id) == text}
    if not meant and text.isdecimal() and len(text) >= _LEAST:
        meant = {entry.run_id: entry.record for entry in entries if str(entry.run_id).startswith(text)}
    if len(meant) == 1:
        return meant.popitem()
    if meant:
        raise RunNotFound(f"{len(meant)} runs begin with {text}: {', '.join(map(str, sorted(meant)))}")
    run_id = parse_id(text.encode()) if len(text) >= _FULL else None
    if run_id is None or not gate_folders(folder):
        raise RunNotFound(
            f"no run {shown(text)} waits at a gate in {folder}: `brokerfl gate list` shows what does, and --state-dir "
            "names another directory"
        )
    return run_id, {}


def _row(entry: Entry) -> dict[str, Any]:
    record = entry.record
    return {
        "run": str(entry.run_id),
        "node": entry.node_id,
        "state": str(entry.verdict),
        "owner": _text(record, "owner"),
        "name": _text(record, "name"),
        "app": _text(record, "app"),
        "project": _text(record, "project"),
        "type": _text(record, "type"),
        "config": _config(record, "run_config"),
        "message": _config(record, "message_configs"),
        "why": _text(record, "why"),
        "since": _time(record, "since"),
        "until": _time(record, "until"),
    }


def _text(record: Mapping[str, Any], key: str) -> str:
    return str(record.get(key) or "")


def _config(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _time(record: Mapping[str, Any], key: str) -> Any:
    found = record.get(key)
    return local_time(found) if isinstance(found, int | float) else None
