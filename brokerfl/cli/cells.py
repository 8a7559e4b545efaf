"""Cells: how runs and nodes are written where people look, the same in every command.

Owns names, ages, colours and little pictures. It must not know which columns a table has, or JSON.
"""

from collections.abc import Iterable, Sequence

from rich.text import Text

from brokerfl.cli.tables import NOTHING
from brokerfl.common import UserConfig
from brokerfl.common.text import short, shown
from brokerfl.view.overview import NodeRef, NodeView, RunView
from brokerfl.view.reasons import NodeState, RunState
from brokerfl.view.words import lasting

#: Characters of a config, or of an error, that are shown.
_LONGEST = 40

#: Nodes that are named.
_NAMED = 3

_STYLES: dict[RunState | NodeState, str] = {
    RunState.RUNNING: "green",
    RunState.WAITING: "yellow",
    RunState.STUCK: "bold red",
    RunState.DRAINING: "cyan",
    RunState.DETACHED: "red",
    RunState.STOPPING: "magenta",
    RunState.COMPLETED: "dim",
    RunState.STOPPED: "dim",
    NodeState.READY: "green",
    NodeState.TRAINING: "cyan",
    NodeState.LATE: "yellow",
    NodeState.STUCK: "bold red",
    NodeState.PAUSED: "magenta",
    NodeState.LOST: "red",
}

_LEVELS = "▁▂▃▄▅▆▇█"


def style_of(state: RunState | NodeState) -> str:
    """Return the colour of a state."""
    return _STYLES[state]


def state_cell(state: RunState | NodeState) -> Text:
    """Return a state in its colour."""
    return Text(state, style=style_of(state))


def has_said(view: RunView | NodeView) -> bool:
    """Whether a status of it is known."""
    return view.status.at > 0


def since(at: float, now: float) -> str:
    """Return how long ago something was; ``-`` if unknown."""
    return lasting(now - at) if at else NOTHING


def lasted(seconds: float) -> str:
    """Return a duration; ``-`` for 0, which means unknown."""
    return lasting(seconds) if seconds else NOTHING


def cut(text: str, most: int = _LONGEST) -> str:
    """Return one line of a text, at most so long."""
    line = " ".join(shown(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def config_of(config: UserConfig) -> str:
    """Return a config as it is typed: ``lr=0.1 rounds=3``."""
    return " ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in config.items()
    )


def name_of(run: RunView) -> str:
    """Return what a run is called, else the config that tells it from others; ``-`` for neither."""
    return cut((run.run.name if run.run else "") or config_of(run.config)) or NOTHING


def answered(run: RunView) -> str:
    """Return how many messages of the latest group were answered: ``15/16``."""
    return f"{run.status.answered}/{run.status.sent}" if run.status.sent else NOTHING


def called(node: NodeRef) -> str:
    """Return the name of a node, or the beginning of its id."""
    return cut(node.name) or short(node.node_id)


def waiting_for(run: RunView) -> str:
    """Return the nodes that a run waits for, without a blank: ``site-9,site-7,site-2,+4``."""
    named = [called(node) for node in run.waiting_for[:_NAMED]]
    rest = max(len(run.waiting_for), run.status.owing if named else 0) - len(named)
    return ",".join([*named, *([f"+{rest}"] if rest > 0 else [])]) or NOTHING


def why(run: RunView, now: float) -> str:
    """Return why a run does not get on, or when it ended."""
    ended = f"{run.state} {lasting(now - run.ended_at)} ago" if run.ended_at else ""
    return cut(run.judged.why or ended, 300) or NOTHING


def doing(node: NodeView, runs: Iterable[RunView]) -> str:
    """Return what a node has executed for the longest time: ``1141… r21``."""
    at_work = node.judged.doing
    if at_work is None:
        return NOTHING
    shorts = {run.run_id: run.short for run in runs}
    group = f" r{at_work.group}" if at_work.group.isdecimal() else f" {at_work.group}"
    return cut(f"{shorts.get(at_work.run) or short(at_work.run)}{group}")


def spark(values: Sequence[float]) -> str:
    """Return values as a row of little columns, the highest as high as can be."""
    highest = max(values, default=0.0) or 1.0
    return "".join(_LEVELS[min(7, max(0, round(value / highest * 7)))] for value in values)


def bar(part: float, whole: float, width: int = 16) -> str:
    """Return how much of a whole there is. It is full only if nothing is lacking, and empty only for nothing."""
    if whole <= 0:
        return ""
    share = min(1.0, max(0.0, part / whole))
    full = width if share == 1 else min(width - 1, max(share > 0, int(share * width)))
    return "█" * full + "░" * (width - full)
