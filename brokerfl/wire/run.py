"""What Redis holds of a run beside its messages: the run's frame, and the ledger's entries.

Owns their layout. It must not know keys or states.
"""

from dataclasses import dataclass
from typing import Any

from brokerfl.common import FrameError, UserConfig
from brokerfl.wire.frame import pack, unpack

_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Run:
    """A run as its ServerApp, its nodes and the operator see it.

    Attributes:
        run_id: random uint64, never 0 or 1.
        app: what was started, ``module:attribute``.
        run_config: the run's configuration, given to every Context.
        created_at: Unix time in seconds, by the clock of Redis.
    """

    run_id: int
    app: str
    run_config: UserConfig
    created_at: float


def encode_run(run: Run) -> bytes:
    """Return the frame of ``run``, without its id: the key or hash field that holds it says that."""
    return pack([run.app, run.created_at, run.run_config])


def decode_run(run_id: int, data: bytes) -> Run:
    """Return the run that `encode_run` made.

    Raises:
        FrameError: malformed, or of another version.
    """
    match unpack(data):
        case [str(app), float(created_at), dict(config)] if all(
            isinstance(key, str) and isinstance(value, _SCALARS) for key, value in config.items()
        ):
            return Run(run_id, app, config, created_at)
    raise FrameError(f"the frame of run {run_id} is malformed")


def encode_entry(node_id: int, group_id: str, message_type: str, deadline: int) -> bytes:
    """Return a ledger entry. ``deadline`` is in milliseconds of Redis TIME."""
    return pack([node_id, group_id, message_type, deadline])


def decode_entry(data: bytes) -> tuple[int, str, str, int]:
    """Return node id, group, type and deadline (ms) of a ledger entry.

    Raises:
        FrameError: malformed, or of another version.
    """
    entry: Any = unpack(data)
    match entry:
        case [int(node_id), str(group_id), str(message_type), int(deadline), *_]:
            return node_id, group_id, message_type, deadline
    raise FrameError("a ledger entry is malformed")
