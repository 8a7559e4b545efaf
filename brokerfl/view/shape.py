"""Shapes: runs, nodes and servers as JSON, the same in every command and page.

Owns the keys, which are always there: null where nothing is known. Ids are strings, because they exceed JavaScript's
integers; times are ISO 8601 with their zone, durations seconds, sizes bytes. It must not know who asks.
"""

import math
from datetime import datetime
from typing import Any

from brokerfl.view.overview import NodeView, Overview, RunView
from brokerfl.view.watch import Sight
from brokerfl.wire.origin import Origin


def run_to_json(run: RunView, now: float) -> dict[str, Any]:
    """Return a run. ``now`` is Unix time by Redis' clock, as in `Overview`."""
    status, is_told, known = run.status, run.status.at > 0, run.run
    awaited = {each.node: each.since for each in status.awaited if each.since}
    return {
        "run": str(run.run_id),
        "name": (known.name if known else "") or None,
        "state": run.state,
        "reason": run.reason or None,
        "why": run.judged.why,
        **_origin(known.app if known else None, known.origin if known else None),
        "config": {key: _writable(value) for key, value in run.config.items()},
        "holder": run.holder or None,
        "started": time_to_json(known.created_at) if known else None,
        "age": _age(known.created_at, now) if known else None,
        "ended": time_to_json(run.ended_at),
        "round": status.group or None,
        "phase": status.phase or None,
        "sent": status.sent if is_told else None,
        "answered": status.answered if is_told else None,
        "errors": status.errors if is_told or (known and run.is_over) else None,
        "owing": status.owing if is_told else None,
        "waiting_for": [
            {
                "node": str(ref.node_id),
                "name": ref.name or None,
                "since": time_to_json(awaited.get(ref.node_id, 0.0)),
                "seconds": round(now - awaited[ref.node_id], 3) if ref.node_id in awaited else None,
            }
            for ref in run.waiting_for
        ],
        "usually": status.usually or None,
        "rounds": list(status.rounds),
        "nodes": run.nodes if known else None,
        "messages": run.messages if known else None,
        "replies": run.replies if known else None,
        "bytes_out": status.bytes_out if is_told else None,
        "bytes_in": status.bytes_in if is_told else None,
        "memory": status.memory if is_told else None,
        "metrics": {name: value if math.isfinite(value) else None for name, value in run.metrics.items()},
        "told": time_to_json(status.at),
    }


def node_to_json(node: NodeView, now: float) -> dict[str, Any]:
    """Return a node. ``now`` is Unix time by Redis' clock, as in `Overview`."""
    status, info, is_told = node.status, node.info, node.status.at > 0
    return {
        "node": str(info.node_id),
        "name": info.name or None,
        "state": node.state,
        "online": info.online,
        "seen": time_to_json(status.at),
        "started": time_to_json(info.since),
        "doing": [
            {
                "run": str(each.run),
                "message": each.message,
                "type": each.type,
                "round": each.group or None,
                "since": time_to_json(each.since),
                "seconds": round(now - each.since, 3) if each.since else None,
                "is_awaited": not each.over_since,
            }
            for each in status.doing
        ],
        "queue": status.queue if is_told else None,
        "withheld": status.withheld if is_told else None,
        "done": status.done if is_told else None,
        "last": status.last or None,
        "median": status.median or None,
        "errors": status.errors if is_told else None,
        "last_error": status.error or None,
        **_origin(info.origin.app if info.origin else None, info.origin),
        "version": info.version or None,
        "host": status.host or None,
        "pid": status.pid or None,
        "disk_free": status.disk or None,
        "labels": info.labels,
    }


def sight_to_json(sight: Sight, url: str) -> dict[str, Any]:
    """Return everything: Redis with its servers, runs and nodes; those last seen while Redis is away.

    Args:
        sight: what was seen.
        url: where Redis is, without its password.
    """
    seen = sight.overview or Overview(0.0, (), (), ())
    return {
        "at": time_to_json(seen.at),
        "redis": {
            "url": url,
            "reason": sight.reason or None,
            "why": sight.why,
            "servers": [
                {
                    "product": each.product or None,
                    "used": each.memory.used or None,
                    "most": each.memory.most or None,
                    "clients": each.clients or None,
                    "operations": each.operations if each.product else None,
                    "aof": each.aof or None,
                }
                for each in seen.servers
            ],
        },
        "runs": [run_to_json(run, seen.at) for run in seen.runs],
        "nodes": [node_to_json(node, seen.at) for node in seen.nodes],
    }


def time_to_json(seconds: float) -> str | None:
    """Return Unix time in ISO 8601; None for 0, which means unknown, and for what no calendar has."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds") if seconds else None
    except (ValueError, OverflowError, OSError):
        return None


def _age(at: float, now: float) -> float | None:
    return round(now - at, 3) if at and math.isfinite(at) else None


def _writable(value: bool | int | float | str) -> bool | int | float | str:
    """Return a value of a config; JSON has no number for inf and nan."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _origin(app: str | None, origin: Origin | None) -> dict[str, Any]:
    """Return where an app comes from."""
    return {
        "app": app or None,
        "project": (origin.project if origin else "") or None,
        "project_version": (origin.version if origin else "") or None,
        "digest": (origin.digest if origin else "") or None,
    }
