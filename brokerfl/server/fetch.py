"""The fetch: a reply that was taken becomes the Message that the app is given.

Owns that a large reply is fetched when it is its turn, and what becomes of one whose payload is gone. It must not know
who waits, or how outboxes are read.
"""

import time
from collections.abc import Iterator, Sequence

from brokerfl.broker.connection import Connection
from brokerfl.broker.ledger import Ledger, OpenMessage
from brokerfl.broker.outbox import read_data
from brokerfl.common import Error, FrameError, Message, RedisUnreachable
from brokerfl.server.link import Link
from brokerfl.server.push import Pusher
from brokerfl.server.reply import decode_reply, unreadable_reply
from brokerfl.wire.frame import Fields
from brokerfl.wire.payload import MissingChunkError, assemble, manifest_of


class Fetcher:
    """Fetches the replies of one run, from any thread.

    Args:
        connection: where the run lives.
        run_id: the run.
        ledger: its messages.
        link: through which Redis is reached.
        pusher: asks again for a reply that proves to be incomplete.
        limit: most bytes that a reply may have.
    """

    def __init__(
        self, connection: Connection, run_id: int, ledger: Ledger, link: Link, pusher: Pusher, limit: int
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._ledger = ledger
        self._link = link
        self._pusher = pusher
        self._limit = limit

    def decode(self, message: OpenMessage, until: float | None) -> Message | None:
        """Return a reply that was taken; None when it is not to be had now: it can be taken again.

        A payload that Redis lost is asked for again; one that does not arrive until ``until`` waits for the next call.

        Raises:
            RunStopped, RunFenced, RunLost, OutageLimit: the run is over.
        """
        if isinstance(message.reply, Error):
            return decode_reply(self._run_id, message)
        try:
            return decode_reply(self._run_id, message, self._fetch(message, until))
        except MissingChunkError as error:
            if self._pusher.push_again(message):
                return None
            return unreadable_reply(self._run_id, message, str(error))
        except FrameError as error:
            return unreadable_reply(self._run_id, message, str(error))
        except BaseException as error:
            with self._ledger.lock:
                self._ledger.put_back(message)
            if isinstance(error, RedisUnreachable):
                return None
            raise

    def _fetch(self, message: OpenMessage, until: float | None) -> Fields | None:
        """Return the content of a large reply, None of one that has it in itself; an outage loses nothing of it."""
        assert isinstance(message.reply, dict), "an Error reply has no content"
        manifest = manifest_of(message.reply, self._limit)
        if manifest is None:
            return None
        entries, run, node = manifest.entries, self._run_id, message.node_id
        if len(entries) != len(manifest.digests):
            raise MissingChunkError("its node had nowhere to put its chunks")

        def read(window: Sequence[int]) -> Iterator[bytes | None]:
            wanted = [entries[index] for index in window]
            while wanted:
                try:
                    for chunk in read_data(self._connection, node, run, tuple(wanted)):
                        del wanted[0]
                        yield chunk
                except RedisUnreachable as error:
                    self._link.reconnect(error, until)
                    if until is not None and time.monotonic() >= until:
                        raise

        content, _ = assemble(manifest, read)
        return content
