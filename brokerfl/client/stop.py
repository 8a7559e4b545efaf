"""The stop: whether a node is to stop, and why. Owns that fact. It must not know who reads it, or what ends with it."""

import threading


class Stop(threading.Event):
    """Set when the node is to finish what it has in hand, and leave.

    Attributes:
        failure: the error that it cannot wait out, if that is the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Stop because of an error that cannot be waited out."""
        self.failure = error
        self.set()
