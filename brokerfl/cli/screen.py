"""The screen of `brokerfl top`: what stands where, whatever size it has.

Owns the layout, and which rows are shown if there is no room for all. It must not know terminals, keys or Redis.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.text import Text

from brokerfl.broker.seen import SeenServer
from brokerfl.cli.cells import (
    answered,
    bar,
    called,
    cut,
    doing,
    has_said,
    lasted,
    name_of,
    since,
    spark,
    state_cell,
    style_of,
    why,
)
from brokerfl.cli.columns import Column, lines_of
from brokerfl.cli.details import node_lines, run_lines
from brokerfl.cli.picture import Page, Picture, chosen_of, nodes_of, runs_of
from brokerfl.cli.tables import NOTHING, cell_of
from brokerfl.common.text import sized
from brokerfl.view.overview import NodeView, Overview, RunView
from brokerfl.view.reasons import NodeState, RunState
from brokerfl.view.words import lasting

_RUN_COLUMNS = (
    Column(" RUN"),
    Column("NAME", rank=3, most=20),
    Column("STATE"),
    Column("ROUND", rank=1, most=8),
    Column("ANSWERED", is_number=True, rank=2),
    Column("", rank=9),
    Column("ERR", is_number=True, rank=4),
    Column("IN/OUT", rank=8),
    Column("LAST ROUND", rank=7),
    Column("APP", rank=10),
    Column("WHY", rank=1),
)

_NODE_COLUMNS = (
    Column(" NODE", most=20),
    Column("STATE"),
    Column("SEEN", is_number=True, rank=2),
    Column("DOING", rank=1, most=20),
    Column("SINCE", is_number=True, rank=1),
    Column("QUEUE", is_number=True, rank=6),
    Column("LAST", is_number=True, rank=5),
    Column("MEDIAN", is_number=True, rank=4),
    Column("ERR", is_number=True, rank=3),
    Column("APP", rank=8, most=24),
    Column("LAST ERROR", rank=7),
)

HELP = (
    "↑ ↓ j k    select a run or a node",
    "Enter      show everything that is known of it; Esc goes back",
    "s          sort by state, by age, by errors",
    "f          only what is not running, ready or training",
    "x          stop the selected run, after a question",
    "p          pause the selected node, or resume it",
    "?          these lines",
    "q          quit",
)

View = TypeVar("View", RunView, NodeView)


def frame(picture: Picture, width: int, height: int | None = None) -> list[Text]:
    """Return the lines of the screen, none longer than its width.

    Args:
        picture: what is shown.
        width: columns.
        height: lines; None for as many as there are, and no line of keys.
    """
    overview = picture.overview
    head = [_cut(_header(picture, width), width)]
    if overview is None:
        return [*head, Text(picture.away or "…")]
    head.append(_cut(_counts(overview), width))
    foot = [] if height is None else [_cut(_sentence(picture), width), _cut(_keys(picture), width)]
    room = None if height is None else max(4, height - len(head) - len(foot))
    body = _list(picture, overview, width, room) if picture.page is Page.LIST else _page(picture, overview, width, room)
    if picture.away:
        for line in (*head[1:], *body):
            line.stylize("dim")
    if room is not None:
        body = [*body[:room], *[Text()] * (room - len(body))]
    return [*head, *body, *foot]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


# The first lines.


def _header(picture: Picture, width: int) -> Text:
    """Return what is known of Redis: as much of it as there is room for, and always what is wrong."""
    servers = picture.overview.servers if picture.overview else ()
    parts: list[tuple[int, Text]] = [(1, Text("brokerfl top", style="bold")), (2, Text(picture.url))]
    if picture.away:
        parts.append((0, Text(f"redis_away: {picture.away}", style="bold red")))
    elif servers:
        parts += _of_servers(servers)
    while len(parts) > 1 and sum(part.cell_len + 2 for _, part in parts) - 2 > width:
        parts.remove(max(parts, key=lambda each: each[0]))
        if max(rank for rank, _ in parts) == 0:
            break
    return Text("  ").join(part for _, part in parts)


def _of_servers(servers: Sequence[SeenServer]) -> list[tuple[int, Text]]:
    memory = max((each.memory for each in servers), key=lambda each: each.used / each.most if each.most else 0.0)
    count, product = f"{len(servers)} x " if len(servers) > 1 else "", servers[0].product
    parts = [(4, Text(f"{count}{product}"))] if product else []
    if memory.most:
        used = f"mem {bar(memory.used, memory.most, 10)} {sized(memory.used)}/{sized(memory.most)}"
        parts.append((0, Text(f"{used} FULL", style="bold red") if memory.is_full else Text(used)))
    elif memory.used:
        parts.append((3, Text(f"mem {sized(max(each.memory.used for each in servers))}")))
    states = {each.aof for each in servers} - {""}
    if states:
        is_failing = "failing" in states
        aof = next((state for state in ("failing", "off", "ok") if state in states), "")
        parts += [
            (5, Text(f"clients {sum(each.clients for each in servers)}")),
            (0 if is_failing else 6, Text(f"AOF {aof}", style="bold red" if is_failing else "")),
            (7, Text(f"{sum(each.operations for each in servers):,} op/s")),
        ]
    return parts


def _counts(overview: Overview) -> Text:
    runs = [run for run in overview.runs if not run.is_over]
    return Text("    ").join(
        (
            Text.assemble((f"runs {len(runs)}", "bold"), _by_state([run.state for run in runs], RunState)),
            Text.assemble(
                (f"nodes {len(overview.nodes)}", "bold"), _by_state([node.state for node in overview.nodes], NodeState)
            ),
        )
    )


def _by_state(states: Sequence[RunState | NodeState], order: type[RunState] | type[NodeState]) -> Text:
    """Return how many there are in each state."""
    counted = Counter(states)
    parts = [Text(f"{counted[state]} {state}", style=style_of(state)) for state in order if counted[state]]
    return Text.assemble(": ", Text(" · ").join(parts)) if parts else Text()


# The last lines.


def _sentence(picture: Picture) -> Text:
    """Return the notice, else all of why the selected run does not get on."""
    if picture.notice:
        return Text(picture.notice, style="bold")
    for run in runs_of(picture) if picture.page is Page.LIST else ():
        if picture.chosen == chosen_of(run) and run.judged.why:
            return Text(f"{run.short} {cut(run.judged.why, 500)}", style=style_of(run.state))
    return Text()


def _keys(picture: Picture) -> Text:
    if picture.page is Page.LIST:
        listed = "failures" if picture.failures_only else "all"
        return Text(
            f"q quit  s sort: {picture.order}  f list: {listed}  Enter show  x stop  p pause  ? help", style="dim"
        )
    return Text("Esc back  ↑↓ scroll  q quit", style="dim")


# The list.


def _list(picture: Picture, overview: Overview, width: int, room: int | None) -> list[Text]:
    runs, nodes = runs_of(picture), nodes_of(picture)
    titles = 3  # two, and an empty line
    run_room, node_room = _shared(len(runs), len(nodes), None if room is None else room - titles)
    return [
        *_part(runs, _RUN_COLUMNS, lambda run: _run_row(run, overview, picture), picture, width, run_room),
        Text(),
        *_part(nodes, _NODE_COLUMNS, lambda node: _node_row(node, overview, picture), picture, width, node_room),
    ]


def _shared(runs: int, nodes: int, room: int | None) -> tuple[int | None, int | None]:
    """Return how many lines runs and nodes have: what one half does not need is the other's."""
    if room is None:
        return None, None
    for_runs = max(min(runs, room // 2), min(runs, room - nodes))
    return for_runs, room - for_runs


def _part(
    views: Sequence[View],
    columns: Sequence[Column],
    row: Callable[[View], list[Text]],
    picture: Picture,
    width: int,
    room: int | None,
) -> list[Text]:
    """Return the title and as many rows as there is room for, the selected one among them."""
    start: int = 0
    shown: int = len(views)
    if room is not None and len(views) > room:
        shown = max(0, room - 1)
        at = next((at for at, view in enumerate(views) if chosen_of(view) == picture.chosen), 0)
        start = max(0, at - shown + 1)
    seen = views[start : start + shown]
    lines = lines_of(columns, [row(view) for view in seen], width)
    for view, line in zip(seen, lines[1:], strict=True):
        if chosen_of(view) == picture.chosen:
            line.pad_right(width - line.cell_len)
            line.stylize("reverse")
    if len(seen) < len(views) and (room is None or room > 0):
        hidden = [view.state for view in (*views[:start], *views[start + shown :])]
        kind = RunState if isinstance(views[0], RunView) else NodeState
        lines.append(_cut(Text.assemble(f" … {len(hidden)} more", _by_state(hidden, kind)), width))
    return lines


def _mark(view: RunView | NodeView, picture: Picture) -> str:
    return ">" if picture.chosen == chosen_of(view) else " "


def _run_row(run: RunView, overview: Overview, picture: Picture) -> list[Text]:
    status = run.status
    last = f"{lasting(status.rounds[-1])} {spark(status.rounds)}" if status.rounds else NOTHING
    return [
        Text(f"{_mark(run, picture)}{run.short}"),
        Text(name_of(run)),
        state_cell(run.state),
        cell_of(status.group),
        Text(answered(run)),
        Text(bar(status.answered, status.sent)),
        cell_of(status.errors if has_said(run) else None),
        Text(f"{sized(status.bytes_in)}/{sized(status.bytes_out)}" if has_said(run) else NOTHING),
        Text(last),
        Text("alive" if run.holder else "gone"),
        Text(why(run, overview.at)),
    ]


def _node_row(node: NodeView, overview: Overview, picture: Picture) -> list[Text]:
    status, info = node.status, node.info
    return [
        Text(f"{_mark(node, picture)}{called(node.ref)}"),
        state_cell(node.state),
        Text(since(status.at, overview.at)),
        Text(doing(node, overview.runs)),
        Text(lasted(node.judged.busy)),
        cell_of(status.queue if has_said(node) else None),
        Text(lasted(status.last)),
        Text(lasted(status.median)),
        cell_of(status.errors if has_said(node) else None),
        cell_of(info.origin),
        Text(cut(status.error) or NOTHING),
    ]


# The other pages.


def _page(picture: Picture, overview: Overview, width: int, room: int | None) -> list[Text]:
    lines = [Text(), *(_wrapped(_page_lines(picture, overview), width))]
    most = max(0, len(lines) - room) if room is not None else 0
    return lines[min(picture.skipped, most) :]


def _page_lines(picture: Picture, overview: Overview) -> list[Text]:
    if picture.page is Page.HELP:
        return [*map(Text, HELP)]
    runs = (run_lines(run, overview) for run in overview.runs if chosen_of(run) == picture.chosen)
    nodes = (node_lines(node, overview) for node in overview.nodes if chosen_of(node) == picture.chosen)
    return next(runs, None) or next(nodes, None) or [Text("It is no longer there.")]


def _wrapped(lines: Sequence[Text], width: int) -> list[Text]:
    """Return lines as several that fit: on this page nothing is cut."""
    found = []
    for line in lines:
        rest = line
        while rest.cell_len > width:
            first, rest = rest.divide([width])
            found.append(first)
        found.append(rest)
    return found
