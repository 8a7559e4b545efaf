"""Shapes: runs, nodes and servers as JSON, the same in every command and page.

Owns the keys, which are always there: null where nothing is known. Ids are strings, because they exceed JavaScript's
integers; times are ISO 8601 with their zone, durations seconds, sizes bytes. It must not know who asks.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from brokerfl.broker.memory import RunMemory
from brokerfl.view.history import said
from brokerfl.view.overview import NodeView, Overview, RunView
from brokerfl.view.story import Story
from brokerfl.view.watch import Sight
from brokerfl.wire.event import Event, Kind
from brokerfl.wire.origin import Origin

#: Most events, and most points of a curve, that are told at once.
_TOLD_EVENTS, _TOLD_POINTS = 100, 400


def run_to_json(run: RunView, now: float, held: RunMemory | None = None) -> dict[str, Any]:
    """Return a run. ``now`` is Unix time by Redis' clock, as in `Overview`; ``held`` is what was measured in Redis."""
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
        "record": status.record if is_told else None,
        "recorded_at": status.recorded_at or None,
        "held": held_to_json(held) if held else None,
        "metrics": {name: value if math.isfinite(value) else None for name, value in run.metrics.items()},
        "told": time_to_json(status.at),
    }


def held_to_json(held: RunMemory) -> dict[str, int]:
    """Return what a run holds in Redis, in all and in parts."""
    return {
        "total": held.total,
        "contents": held.contents,
        "inboxes": held.inboxes,
        "outboxes": held.outboxes,
        "chunks": held.chunks,
        "context": held.context,
        "books": held.books,
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
        "dead": status.dead if is_told else None,
        "latest_dead": [
            {"run": str(each.run), "message": each.message, "crashes": each.crashes, "at": time_to_json(each.at)}
            for each in status.latest_dead
        ],
        "labels": info.labels,
    }


def event_to_json(event: Event) -> dict[str, Any]:
    """Return an event of a run."""
    return {
        "time": time_to_json(event.at, "milliseconds"),
        "kind": str(event.kind),
        "group": event.group,
        "type": event.type,
        "sent": event.sent,
        "answered": event.answered,
        "errors": event.errors,
        "seconds": round(event.seconds, 3),
        "node": str(event.node) if event.node else None,
        "text": event.text,
        "values": dict(event.values),
    }


def story_to_json(story: Story) -> dict[str, Any]:
    """Return what happened in a run: the latest events, its rounds, and its numbers."""
    number = max(0, len(story.events) - _TOLD_EVENTS)
    return {
        "run": str(story.run_id),
        "events": [
            {"number": at, "time": time_to_json(event.at, "milliseconds"), "kind": str(event.kind), "said": said(event)}
            for at, event in enumerate(story.events[number:], number)
        ],
        "rounds": [
            {"round": event.group, "type": event.type, "seconds": round(event.seconds, 3), "errors": event.errors}
            for event in story.events
            if event.kind == Kind.ANSWERED
        ][-_TOLD_POINTS:],
        "curves": [
            {"name": name, "points": [[at, value if math.isfinite(value) else None] for at, value in thinned(curve)]}
            for name, curve in story.curves.items()
        ],
    }


def thinned(curve: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """Return points of a curve at even distances, not too many, with the last one."""
    step = -(-len(curve) // _TOLD_POINTS) or 1
    return curve[::-step][::-1]


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


def time_to_json(seconds: float, precision: str = "seconds") -> str | None:
    """Return Unix time in ISO 8601; None for 0, which means unknown, and for what no calendar has."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec=precision) if seconds else None
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
