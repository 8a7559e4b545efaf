"""What systemd is told of a service: that it is ready, what it is doing, and that it is alive.

Owns the protocol of sd_notify(3), and when the watchdog is fed. It must not know nodes or Redis.

Its variables are taken out of the environment, so that no process of an app speaks for the service.
"""

import os
import socket
from collections.abc import Callable

from brokerfl.broker.heartbeat import Heartbeat


class Systemd:
    """The socket of the service manager; without one, nothing is told to nobody.

    Attributes:
        watchdog: seconds after which systemd kills a service that it does not hear of; 0 for never.
    """

    def __init__(self) -> None:
        path, pid = os.environ.pop("NOTIFY_SOCKET", ""), os.environ.pop("WATCHDOG_PID", "")
        period = os.environ.pop("WATCHDOG_USEC", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path  # an abstract socket has no file
        is_watched = path != "" and period.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog = int(period) / 1e6 if is_watched else 0.0

    def tell(self, **fields: object) -> None:
        """Tell what has changed, such as ``READY=1`` or ``STATUS="serving"``. A manager that is away misses it."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1.0)
                sender.sendto(text.encode(errors="replace"), self._address)
        except OSError:
            return

    def watch(self, is_alive: Callable[[float], bool]) -> None:
        """From now on feed the watchdog at half of its time, while ``is_alive(that time)`` is true."""
        if not self.watchdog:
            return
        half = self.watchdog / 2

        def feed() -> None:
            if is_alive(half):
                self.tell(WATCHDOG=1)

        Heartbeat("watchdog", half, feed, lambda _: None).start()
