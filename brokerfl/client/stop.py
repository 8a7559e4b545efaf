"""That a node is to stop, and why. Owns this one fact. It must not know who sees it, or what ends with it."""

import threading


class Stop(threading.Event):
    """Set when the node is to finish what it has in hand, and leave.

    Attributes:
        failure: what it cannot wait out, if that is the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Stop, for something went wrong that cannot be waited out."""
        self.failure = error
        self.set()
