"""The ownership of a run: what its owner key says.

Owns the form of that key. It must not know who reads or writes it.
"""

from typing import NamedTuple

from brokerfl.common import RunLost
from brokerfl.common.text import shown

#: What a stop writes instead of a token, and what the end of a run does.
STOP, ENDED, STOPPED = "stop", "ended", "stopped"


class Ownership(NamedTuple):
    """What an owner key holds: whose the run is, and how many transactions that owner has made.

    After the end of the run ``token`` is `ENDED` or `STOPPED`, and ``sequence`` when that was: Unix time in
    milliseconds.
    """

    counter: int
    token: str
    sequence: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.token in (ENDED, STOPPED)

    @property
    def is_stopping(self) -> bool:
        """Whether the run is being stopped."""
        return self.token.startswith(f"{STOP}/")

    @property
    def name(self) -> str:
        """The owner without its sequence."""
        return f"{self.counter}:{self.token}"

    def __str__(self) -> str:
        return f"{self.name}:{self.sequence}"


def ownership_in(value: bytes) -> Ownership:
    """Return what an owner key holds.

    Raises:
        RunLost: something that brokerfl has not written.
    """
    name, _, sequence = value.decode(errors="replace").rpartition(":")
    counter, _, token = name.partition(":")
    if not (counter.isascii() and counter.isdigit() and sequence.isascii() and sequence.isdigit()):
        raise RunLost(f"the run's owner key holds {shown(repr(value[:100]))}, which brokerfl has not written")
    return Ownership(int(counter), token, int(sequence))
