"""The progress line of `brokerfl-server`: how far the group is, on a terminal, below the log.

Owns when there is one, and that log lines and the app's own output go above it. It must not know how the run is held.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from brokerfl.server.announcer import named_group
from brokerfl.server.report import Report
from brokerfl.view.words import lasting
from brokerfl.wire.status import Phase, RunStatus

#: Seconds between two looks.
_PAUSE = 0.25

#: The part of the time that a look may take: with very many messages they are rarer.
_SHARE = 0.01

#: Nodes that the line names.
_NAMED = 2


@contextmanager
def progress_line(report: Report, *, quiet: bool = False) -> Iterator[None]:
    """Show the progress of a run while the block runs, if standard error is a terminal that can.

    Args:
        report: of the run.
        quiet: show nothing.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal or console.is_dumb_terminal or not _is_shown():
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[text]}", markup=False))
    # An app's output that goes elsewhere stays there.
    bar = Progress(
        *columns, console=console, transient=True, auto_refresh=False, redirect_stdout=bool(sys.stdout.isatty())
    )
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(bar, report, over), name="progress line", daemon=True)
    os.register_at_fork(after_in_child=_leave_to_parent)
    with bar:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(1.0)


def _leave_to_parent() -> None:
    """A forked process writes past the line: the lock that guards it may have been held when it was forked."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, getattr(stream, "rich_proxied_file", stream))


def _is_shown() -> bool:
    """Whether standard error is the terminal's: an app may have replaced it."""
    return sys.stderr is sys.__stderr__


def _show(bar: Progress, report: Report, over: threading.Event) -> None:
    task: TaskID | None = None
    pause = _PAUSE
    while not over.wait(pause):
        with suppress(Exception):  # a line that cannot be shown stops nothing
            began = time.monotonic()
            status = report.status(weighs=False)
            pause = max(_PAUSE, (time.monotonic() - began) / _SHARE)
            task = _update(bar, task, status, report.lasted(status), report.name_of)
            bar.refresh()


def _update(
    bar: Progress, task: TaskID | None, status: RunStatus, lasted: float, name_of: Callable[[int], str]
) -> TaskID | None:
    """Let the line say what the run is at; return its task, None if there is nothing to say."""
    if status.phase == Phase.NODES:
        what, done, total, text = "waiting for nodes", status.online, status.needed, _since(status)
    elif status.owing and status.sent:
        what, done, total = named_group(status.group), status.answered, status.sent
        text = f"{lasting(lasted)}  waiting for {_names(status, name_of)}"
    else:
        if task is not None:
            bar.remove_task(task)
        return None
    text = f"{done}/{total}  {text}"
    if task is None:
        return bar.add_task(what, total=total, completed=done, text=text)
    bar.update(task, description=what, total=total, completed=done, text=text)
    return task


def _since(status: RunStatus) -> str:
    return lasting(status.at - status.since)


def _names(status: RunStatus, name_of: Callable[[int], str]) -> str:
    names = ", ".join(name_of(each.node) for each in status.awaited[:_NAMED])
    rest = status.owing - min(_NAMED, len(status.awaited))
    return f"{names} and {rest} more" if rest else names
