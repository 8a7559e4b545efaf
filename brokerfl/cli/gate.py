"""`brokerfl gate`: what waits at the gates of this machine's nodes, and what the site decides about it.

Owns how that is shown, and which run is meant. It reads and writes the state directories of nodes, and needs no Redis:
the site decides.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from brokerfl.cli.exits import Command, Group
from brokerfl.cli.options import Text, state_dir_option
from brokerfl.cli.tables import format_option, local_time, show, show_done
from brokerfl.client.folder import default_state_dir
from brokerfl.client.gate_folder import Entry, GateFolder, Verdict, gate_folders
from brokerfl.common import RunNotFound
from brokerfl.common.text import shown

#: Digits of an id that name a run, and of an id that is written in full.
_LEAST, _MOST = 4, 20

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

    RUN is its id, or at least four digits with which the id of no other run begins that waits. The hours, and the most
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
    run_id, found = _found(text, folder)
    for gate_folder, known in found:
        record = {key: value for key, value in known.items() if key not in ("why", "until")}
        gate_folder.decide(run_id, verdict, {**record, "decided": time.time()})
    nodes = [gate_folder.path.parent.name for gate_folder, _ in found]
    text = f"Run {run_id} is {verdict} at {'node' if len(nodes) == 1 else 'nodes'} {', '.join(nodes)}."
    show_done({"run": str(run_id), "state": str(verdict), "nodes": " ".join(nodes)}, text, form)


def _found(text: str, folder: Path) -> tuple[int, list[tuple[GateFolder, dict[str, Any]]]]:
    """Return the run that is meant, and where to decide; all nodes with a gate, for an id that none of them knows."""
    entries = _entries(folder)
    meant = [entry for entry in entries if str(entry.run_id) == text]
    if not meant and text.isdecimal() and len(text) >= _LEAST:
        meant = [entry for entry in entries if str(entry.run_id).startswith(text)]
    if len(ids := {entry.run_id for entry in meant}) == 1:
        return ids.pop(), [(entry.folder, entry.record) for entry in meant]
    if ids:
        raise RunNotFound(f"{len(ids)} runs begin with {text}: {', '.join(map(str, sorted(ids)))}")
    folders = gate_folders(folder)
    if not folders or not (text.isdecimal() and text.isascii() and 19 <= len(text) <= _MOST and int(text) < 2**64):
        raise RunNotFound(
            f"no run {shown(text)} waits at a gate in {folder}: `brokerfl gate list` shows what does, --state-dir names "
            "another directory, and an id in full need not wait"
        )
    return int(text), [(each, {}) for each in folders]


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
