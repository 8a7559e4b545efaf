"""Details: all that is known of one run or one node, line by line.

Owns their order and words. It must not know how they come to a screen.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from math import isfinite

from rich.text import Text

from brokerfl.broker.memory import RunMemory
from brokerfl.cli.cells import (
    answered,
    bar,
    config_of,
    cut,
    has_said,
    since,
    spark,
    style_of,
)
from brokerfl.cli.tables import NOTHING, local_time
from brokerfl.common.text import short, shown, sized
from brokerfl.view.overview import NodeView, Overview, RunView
from brokerfl.view.shape import held_to_json
from brokerfl.view.words import lasting
from brokerfl.wire.origin import Origin
from brokerfl.wire.status import NodeStatus

#: Columns of what a line is about.
_WIDTH = 12

#: Points of a number that are drawn.
_POINTS = 40

#: What is said of the config of a sealed run.
SEALED = "sealed"

#: Most characters of a value.
_LONGEST = 1000


def run_lines(run: RunView, overview: Overview) -> list[Text]:
    """Return what is known of a run."""
    return list(_lines(_of_run(run, overview)))


def metric_lines(curves: Mapping[str, Sequence[tuple[int, float]]]) -> list[Text]:
    """Return how the numbers of a run went: their last points as little columns, and the last value."""
    return list(_lines((shown(name), _curve([value for _, value in curve])) for name, curve in curves.items()))


def held_lines(held: RunMemory) -> list[Text]:
    """Return what a run was found to hold in Redis, the largest part first."""
    total, *parts = held_to_json(held).items()
    named = [f"{name} {sized(size)}" for name, size in sorted(parts, key=lambda part: -part[1]) if size]
    return list(_lines(iter([("holds", f"{sized(total[1])} in Redis: {', '.join(named)}")])))


def _curve(values: Sequence[float]) -> str:
    finite = [value for value in values if isfinite(value)][-_POINTS:]
    lowest = min([0.0, *finite])
    return f"{spark([value - lowest for value in finite])} {values[-1]:.6g}".strip() if values else ""


def node_lines(node: NodeView, overview: Overview) -> list[Text]:
    """Return what is known of a node."""
    return list(_lines(_of_node(node, overview)))


def _lines(pairs: Iterator[tuple[str, str | Text]]) -> Iterator[Text]:
    """Yield a line for each pair; a value that is empty has none."""
    for name, value in pairs:
        text = value if isinstance(value, Text) else Text(cut(value, _LONGEST))
        if text.plain not in ("", NOTHING):
            yield Text.assemble((f"{name:<{_WIDTH - 1}} ", "bold"), text)


def _of_run(run: RunView, overview: Overview) -> Iterator[tuple[str, str | Text]]:
    now, status, known = overview.at, run.status, run.run
    yield "run", str(run.run_id)
    yield "name", known.name if known else ""
    yield "state", Text.assemble((run.state, style_of(run.state)), f" ({run.reason})" if run.reason else "")
    yield "why", run.judged.why
    yield "ended", _moment(run.ended_at, now)
    if known is None:
        return
    yield "app", known.app
    yield "project", _project(known.origin)
    yield "config", SEALED if known.is_sealed else config_of(known.run_config)
    yield "started", _moment(known.created_at, now)
    yield "held by", run.holder or ("" if run.is_over else "nobody")
    yield "counts", f"{run.nodes} nodes, {run.messages} messages, {run.replies} replies settled"
    if not has_said(run):
        yield ("errors", str(status.errors)) if run.is_over else ("told", "nothing yet")
        return
    yield "told", _moment(status.at, now)
    yield "phase", f"{shown(status.phase)} for {lasting(now - status.since)}" if status.phase and status.since else ""
    yield "round", status.group
    if status.sent:
        yield "answered", f"{answered(run)} {bar(status.answered, status.sent)}"
    yield "errors", str(status.errors)
    yield from _waiting(run, now)
    yield "rounds", _rounds(status.rounds)
    yield "replies", f"usually after {lasting(status.usually)}" if status.usually else ""
    yield "bytes", f"{sized(status.bytes_in)} in, {sized(status.bytes_out)} out"
    record = f", of which {sized(status.record)} are its record" if status.record else ""
    yield "recorded", f"to {shown(status.recorded_at)}" if status.recorded_at else ""
    yield "memory", f"{sized(status.memory)} in Redis{record}, as far as its ServerApp knows"


def _waiting(run: RunView, now: float) -> Iterator[tuple[str, str]]:
    """Yield a line for each node that is named, and one for the others."""
    awaited = {each.node: each.since for each in run.status.awaited}
    for ref in run.waiting_for:
        at = awaited.get(ref.node_id, 0.0)
        yield "waits for", f"{ref}, for {lasting(now - at)}" if at else str(ref)
    rest = run.status.owing - len(run.waiting_for)
    if run.waiting_for and rest > 0:
        yield "", f"and {rest} more"


def _of_node(node: NodeView, overview: Overview) -> Iterator[tuple[str, str | Text]]:
    now, status, info = overview.at, node.status, node.info
    yield "node", str(info.node_id)
    yield "name", info.name
    yield "state", Text(node.state, style=style_of(node.state))
    yield "app", info.origin.app if info.origin else ""
    yield "project", _project(info.origin)
    yield "labels", " ".join(f"{key}={value}" for key, value in info.labels.items())
    yield "version", f"brokerfl {info.version}" if info.version else ""
    yield "started", _moment(info.since, now)
    if not has_said(node):
        yield "seen", "it has said nothing yet" if info.online else "long ago"
        return
    yield "seen", _moment(status.at, now)
    yield "host", f"{status.host}, process {status.pid}" if status.host else ""
    runs = {run.run_id: run for run in overview.runs}
    for doing in sorted(status.doing, key=lambda each: each.since):
        run = runs.get(doing.run)
        group = f" of group {doing.group}" if doing.group else ""
        for_long = f", for {lasting(now - doing.since)}" if doing.since else ""
        over = ", which nobody waits for" if doing.over_since else ""
        yield "executes", f"{doing.type}{group}, run {run.short if run else short(doing.run)}{for_long}{over}"
    for run in overview.runs:
        if any(ref.node_id == info.node_id for ref in run.waiting_for):
            yield "awaited by", f"run {run.short} {cut(run.run.name) if run.run else ''}".rstrip()
    yield "queue", f"{status.queue} messages"
    yield "withheld", f"{status.withheld} runs, until its site lets them in" if status.withheld else ""
    yield "executed", f"{status.done} messages, {status.errors} exceptions"
    yield "last error", status.error
    yield from _dead(status, now)
    yield "durations", _durations(status.last, status.median)
    yield "disk", f"{sized(status.disk)} free" if status.disk else ""


def _dead(status: NodeStatus, now: float) -> Iterator[tuple[str, str]]:
    """Yield a line for each message that is told of those that killed the node, and one for the others."""
    for each in status.latest_dead:
        yield "dead", f"message {each.message}, run {short(each.run)}: {each.crashes} crashes, {_moment(each.at, now)}"
    if (rest := status.dead - len(status.latest_dead)) > 0:
        yield "dead", f"and {rest} more messages"


def _durations(last: float, median: float) -> str:
    return ", ".join(f"{what} {lasting(seconds)}" for what, seconds in (("last", last), ("median", median)) if seconds)


def _rounds(rounds: Sequence[float]) -> str:
    return f"{spark(rounds)} {' '.join(map(lasting, rounds))}" if rounds else ""


def _project(origin: Origin | None) -> str:
    return str(origin) if origin and origin.project else ""


def _moment(at: float, now: float) -> str:
    """Return when something was, and how long ago."""
    when: datetime | None = local_time(at)
    return f"{when:%Y-%m-%d %H:%M:%S}, {since(at, now)} ago" if when else ""
