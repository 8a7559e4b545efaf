"""The contact of a run and a node: the streams between them, and how the node hears of the run.

Owns how these begin and end, their lifetimes, and the doorbell `P:{N}:ctl`. It must not know messages.

Streams are in the run's slot, and made in its transactions. What is in the node's slot follows as an echo.
"""

from collections.abc import Iterable

from redis.client import Pipeline

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.keys import BELL_LENGTH, GROUP, Keys, milliseconds, parse_id
from brokerfl.broker.stream import batches

#: What a ring says if there are no entries but new ones, so that nothing is read again that is in hand. A run's id may
#: follow: only its inbox has them.
READ_ON = "on"

#: What a ring says if the node was paused or resumed: it is to look at what operators want of it.
STEER = f"{READ_ON} steer"


#: A doorbell, and the id of an entry there.
Ring = tuple[str, str]


def open_streams(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, retention: float) -> None:
    """Put the inbox and the outbox of a node into ``pipe``. Safe to repeat: BUSYGROUP does not stop the rest.

    Args:
        pipe: a transaction of the run.
        keys: the key names.
        node_id: the node.
        run_id: the run.
        retention: seconds that the streams live.
    """
    for key in keys.of_node_in_run(node_id, run_id):
        pipe.xgroup_create(key, GROUP, id="0", mkstream=True)
    expire_streams(pipe, keys, node_id, run_id, retention)


def expire_streams(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, retention: float) -> None:
    """Put the lifetimes, in seconds, of a node's inbox and outbox into ``pipe``."""
    for key in keys.of_node_in_run(node_id, run_id):
        pipe.pexpire(key, milliseconds(retention))


def contact(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, frame: bytes, retention: float) -> None:
    """Put into ``pipe`` what tells a node of a run: an echo.

    Args:
        pipe: commands in the node's slot.
        keys: the key names.
        node_id: the node.
        run_id: the run, which has its inbox already.
        frame: what the node needs to know about the run.
        retention: seconds that the run's keys live.
    """
    pipe.xgroup_create(keys.data(node_id, run_id), GROUP, id="0", mkstream=True)
    pipe.hset(keys.node_runs_of(node_id, run_id), str(run_id), frame)
    expire_at_node(pipe, keys, node_id, run_id, retention)
    ring(pipe, keys, node_id, str(run_id))


def leave_node(pipe: Pipeline, keys: Keys, node_id: int, run_id: int) -> None:
    """Put into ``pipe`` that a run has no inbox at a node any more: an echo."""
    pipe.unlink(keys.data(node_id, run_id))
    pipe.hdel(keys.node_runs_of(node_id, run_id), str(run_id))
    ring(pipe, keys, node_id, str(run_id))


def expire_at_node(pipe: Pipeline, keys: Keys, node_id: int, run_id: int, retention: float) -> None:
    """Put the lifetimes, in seconds, of what a run has in a node's slot into ``pipe``."""
    lives = milliseconds(retention)
    pipe.pexpire(keys.data(node_id, run_id), lives)
    # Shared with other runs, whose retention may be longer: GT never shortens, but needs a ttl to compare with.
    pipe.pexpire(keys.node_runs_of(node_id, run_id), lives, nx=True)
    pipe.pexpire(keys.node_runs_of(node_id, run_id), lives, gt=True)


def ring(pipe: Pipeline, keys: Keys, node_id: int, word: str = "") -> None:
    """Put "look at your runs again" into ``pipe``; ``word`` is one of them, or `READ_ON`. Only the node creates it."""
    run_id = run_in(word)
    doorbell = keys.ctl(node_id, "" if run_id is None else keys.realm_of(run_id))
    pipe.xadd(doorbell, {"r": word}, maxlen=BELL_LENGTH, nomkstream=True)


def silence(connection: Connection, rung: Iterable[Ring], *, all_of_them: bool = False) -> None:
    """Delete the rings that a node has heard. A ring that comes meanwhile goes with them only if ``all_of_them`` do."""
    doorbells: dict[str, list[str]] = {}
    for ctl, entry_id in rung:
        doorbells.setdefault(ctl, []).append(entry_id)
    for ctl, entry_ids in doorbells.items():
        with map_errors(connection.url), connection.at(ctl).redis.pipeline(transaction=False) as pipe:
            for batch in batches(entry_ids):
                pipe.xack(ctl, GROUP, *batch)
                if not all_of_them:
                    pipe.xdel(ctl, *batch)
            if all_of_them:
                pipe.xtrim(ctl, maxlen=0, approximate=False)
            pipe.execute(raise_on_error=False)


def run_in(word: str) -> int | None:
    """Return the run that a ring names."""
    return parse_id(word.rpartition(" ")[2].encode())


def ring_doorbell(connection: Connection, node_id: int, word: str = "") -> None:
    """Ring now: a node wakes its own blocking read this way, with `READ_ON`."""
    redis = connection.at(connection.keys.ctl(node_id)).redis
    with map_errors(connection.url), redis.pipeline(transaction=False) as pipe:
        ring(pipe, connection.keys, node_id, word)
        pipe.execute()
