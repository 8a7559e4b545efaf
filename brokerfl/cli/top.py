"""`brokerfl top`: one screen with all runs and nodes, which goes on by itself.

Owns the loop: looking once a second, keys, stopping a run and pausing a node. It must not know where anything stands
on the screen.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from logging import CRITICAL, getLogger
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import click
from rich.console import Console, Group
from rich.live import Live

from brokerfl.broker.connection import Connection
from brokerfl.broker.ending import stop_run
from brokerfl.broker.pausing import pause, resume
from brokerfl.cli.exits import Command, say
from brokerfl.cli.keyboard import Ended, Keyboard
from brokerfl.cli.options import RedisOptions, redis_options
from brokerfl.cli.picture import Order, Page, Picture, all_of, moved, seen
from brokerfl.cli.screen import frame
from brokerfl.cli.tables import accept_any_text, show_lines
from brokerfl.common import BrokerflError
from brokerfl.view.overview import Overview, read_overview
from brokerfl.view.words import lasting

#: Seconds between two looks.
_EVERY = 1.0

#: Seconds without an answer after which Redis counts as away.
_SILENT_AFTER = 3.0

#: Columns of a screen that is not on a terminal: nothing is cut there.
_WIDE = 1000


@click.command(cls=Command)
@redis_options
@click.option("--once", is_flag=True, help="Print one screen and end, as without a terminal.")
def top(redis: RedisOptions, once: bool) -> None:
    """Show all runs and nodes on one screen, once a second.

    The key ? lists the keys. Without a terminal, one screen is printed.
    """
    connection = redis.connect()
    accept_any_text()
    console = Console(highlight=False)
    if once or not (sys.stdin.isatty() and console.is_terminal and not console.is_dumb_terminal):
        picture = Picture(connection.url, read_overview(connection))
        show_lines(frame(picture, console.width if console.is_terminal else _WIDE))
        return
    getLogger("brokerfl").setLevel(CRITICAL)  # what is wrong stands in the first line
    screen = _Screen(connection, console)
    code = screen.run()
    if screen.stopping is not None:
        say(f"{screen.stopping}; this ends when it is stopped")
    sys.exit(code)


class _Watcher(threading.Thread):
    """Looks at everything once a second, and never gives up.

    Args:
        connection: to Redis.
        wake: called after each look.

    Attributes:
        overview: what was seen last; None before the first look.
    """

    def __init__(self, connection: Connection, wake: Callable[[], None]) -> None:
        super().__init__(name="watcher", daemon=True)
        self.overview: Overview | None = None
        self._error = ""
        self._connection = connection
        self._wake = wake
        self._seen = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    @property
    def away(self) -> str:
        """For how long Redis has not answered, and why; "" if it does."""
        silent = time.monotonic() - self._seen
        if not self._error and silent < _SILENT_AFTER:
            return ""
        return f"for {lasting(silent)}: {self._error}" if self._error else f"no answer for {lasting(silent)}"

    def run(self) -> None:
        """Look until the block ends."""
        while True:
            try:
                self.overview, self._seen, self._error = read_overview(self._connection), time.monotonic(), ""
            except BrokerflError as error:
                self._error = str(error)
            self._wake()
            if self._ended.wait(_EVERY):
                return


class _Screen:
    """The screen, and what keys do.

    Args:
        connection: to Redis.
        console: the terminal.

    Attributes:
        stopping: which run is being stopped, in words; None for none.
    """

    def __init__(self, connection: Connection, console: Console) -> None:
        self.stopping: str | None = None
        self._connection = connection
        self._console = console
        self._picture = Picture(connection.url)
        self._asked: int | None = None  # the run of which the notice asks whether to stop it
        self._news: SimpleQueue[str] = SimpleQueue()  # what became of it

    def run(self) -> int:
        """Show the screen until somebody quits; return the exit code."""
        try:
            with (
                Keyboard(sys.stdin.fileno()) as keyboard,
                _Watcher(self._connection, keyboard.wake) as watcher,
                Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
            ):
                self._wake = keyboard.wake
                while True:
                    self._picture = seen(self._picture, watcher.overview, watcher.away)
                    while not self._news.empty():
                        self._say(self._news.get())
                    self._draw(live)
                    for key in keyboard.read(_EVERY):
                        if key == "q":
                            return 0
                        self._press(key)
        except Ended as ended:
            return 128 + ended.number if ended.number else 0

    def _draw(self, live: Live) -> None:
        try:  # rich asks the environment first, which knows nothing of a window that changed
            self._console.size = size = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            size = os.terminal_size(self._console.size)
        lines = frame(self._picture, size.columns, size.lines)
        live.update(Group(*lines[: size.lines]), refresh=True)

    def _press(self, key: str) -> None:
        picture, asked = self._picture, self._asked
        self._asked = None
        self._picture = replace(picture, notice="")
        if asked is not None:
            if key == "y":
                self._stop(asked)
            return
        match key:
            case "up" | "k":
                self._picture = moved(self._picture, -1)
            case "down" | "j":
                self._picture = moved(self._picture, 1)
            case "s":
                orders = list(Order)
                order = orders[(orders.index(picture.order) + 1) % len(orders)]
                self._picture = replace(self._picture, order=order)
            case "f":
                self._picture = replace(self._picture, failures_only=not picture.failures_only)
            case "enter":
                if picture.chosen in all_of(picture):
                    self._picture = replace(self._picture, page=Page.DETAILS, skipped=0)
            case "escape":
                self._picture = replace(self._picture, page=Page.LIST, skipped=0)
            case "?":
                self._picture = replace(self._picture, page=Page.HELP, skipped=0)
            case "x":
                self._ask()
            case "p":
                self._pause()

    def _ask(self) -> None:
        """Ask whether the selected run is to be stopped."""
        chosen = self._picture.chosen
        if chosen is None or chosen.kind != "run" or chosen not in all_of(self._picture):
            self._say("select a run to stop it")
        elif self.stopping is not None:
            self._say(self.stopping)
        else:
            self._asked = chosen.id
            self._say(f"stop run {chosen.id} and delete its keys? y/n")

    def _pause(self) -> None:
        """Pause the selected node, or resume it."""
        chosen = self._picture.chosen
        if chosen is None or chosen.kind != "node" or chosen not in all_of(self._picture):
            self._say("select a node to pause or resume it")
        else:
            threading.Thread(target=self._pause_now, args=(chosen.id,), name="pause", daemon=True).start()

    def _pause_now(self, node_id: int) -> None:
        overview = self._picture.overview
        nodes = {} if overview is None else {node.info.node_id: node for node in overview.nodes}
        is_paused = node_id in nodes and nodes[node_id].status.is_paused
        try:
            (resume if is_paused else pause)(self._connection, node_id)
            text = f"node {node_id} is {'resumed' if is_paused else 'paused'}; it says so when it has heard of it"
        except BrokerflError as error:
            text = str(error)
        self._news.put(text)
        self._wake()

    def _say(self, text: str) -> None:
        self._picture = replace(self._picture, notice=text)

    def _stop(self, run_id: int) -> None:
        """Stop a run in a thread of its own: its ServerApp has some seconds to detach."""
        self.stopping = f"run {run_id} is being stopped"
        self._say(self.stopping)
        # Not a daemon: what is half done is done to the end, after the screen is gone.
        threading.Thread(target=self._stop_now, args=(run_id,), name="stop").start()

    def _stop_now(self, run_id: int) -> None:
        try:
            stop_run(self._connection, run_id)
            text = f"run {run_id} is stopped and its keys are deleted"
        except BrokerflError as error:
            text = str(error)
        self.stopping = None
        self._news.put(text)
        self._wake()
