"""The history of a run: what happened in it, and how its numbers went, while it goes on and after its end.

Owns how an event is said in words. It must not know where events are kept, or tables.
"""

from brokerfl.broker.connection import Connection
from brokerfl.broker.remains import read_curves, read_past, read_remains
from brokerfl.broker.runs import absent
from brokerfl.common import RunNotFound
from brokerfl.common.text import shown, shown_node
from brokerfl.view.words import lasting
from brokerfl.wire.event import Event, Kind
from brokerfl.wire.past import Past


def metrics_of(connection: Connection, run_id: int) -> dict[str, list[tuple[int, float]]]:
    """Return the numbers of a run by name, each as its rounds and values in the order in which they were told.

    ``accuracy`` is what the app told with `Driver.log_metrics`; ``train/loss`` is the mean of what the replies to
    ``train`` messages had in their metrics records as ``loss``.

    Raises:
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    return read_curves(connection, run_id)


def record_of(connection: Connection, run_id: int) -> Past:
    """Return what a run is or was; ``ended_at`` is 0 if it goes on.

    Raises:
        RunNotFound: there is no such run, or nothing remains of it.
        RedisUnreachable, RedisAuthError: Redis could not be asked.
    """
    remains = read_remains(connection, run_id)
    found = remains.past if remains is not None else read_past(connection, run_id)
    if found is None:
        raise RunNotFound(absent(connection, run_id))
    return found


def ended(past: Past) -> str:
    """Return how a run ended: a state of runs."""
    return "stopped" if past.was_stopped else "completed"


def said(event: Event) -> str:
    """Return what happened in words: ``round 3, train: 4 of 4 answered in 2.5s, loss=0.31``."""
    group = f"round {event.group}" if event.group.isdecimal() else f"group {event.group!r}" if event.group else ""
    what = ", ".join(each for each in (group, event.type) if each)
    numbers = [f"{name}={value:.6g}" for name, value in event.values.items()]
    match event.kind:
        case Kind.BEGUN:
            words = [f"{event.sent} sent"]
        case Kind.ANSWERED:
            errors = [f"{event.errors} error{'s' if event.errors > 1 else ''}"] if event.errors else []
            words = [f"{event.answered} of {event.sent} answered in {lasting(event.seconds)}", *errors, *numbers]
        case Kind.ERROR:
            words = [f"{shown_node(event.node)}: {event.text}"]
        case Kind.METRICS:
            words = numbers or [event.text]
        case _:
            words = [event.kind, *numbers]
    return shown(": ".join(each for each in (what, ", ".join(words)) if each))
