"""The transactions: everything that happens atomically.

Owns what a run's owner does in one MULTI … EXEC in the run's slot, which decides, and what follows from it in other
slots (`echoes`). It must not know what a message's state is, or what became of a transaction.

                 run's slot, in one MULTI                  elsewhere, as echoes
    create       owner, books, lease, bell, events         index                               `owner.create_run`
    take over    owner, lease, events                      -                                   `owner.resume_run`
    renew        lease, if it has lapsed                   -                                   `owner.Owner.renew`
    seal         owner: what is on its way has no effect   -                                   `fence.Fence.seal`
    upload       manifest                                  chunks                              `Transactions`, `blobs`
    commit       books, context, manifests, new streams,   unneeded chunks, contact of new nodes
                 cancelled messages out, messages in,
                 events
    send         books: nodes; strays out, new streams,    contact of the messages' nodes
                 messages in
    announce     the run's frame                           contact of all nodes
    leave        books: nodes; streams of nodes that are   what else is at them
                 gone for good
    verdict      messages out                              -
    restore      owner, books, context, manifests, bell,   lifetimes, index
                 events
    close        status, events; the nodes' streams and    everything at nodes, chunks         `ending`
                 the ledger go
    delete       everything goes; a tombstone, and what    index                               `ending`
                 remains
    stop         owner, status, a ring                     -                                   `ending.stop_run`
    drain        books: drained; a ring                    -                                   `draining.drain_run`
    publish      replies in, messages out, a ring          -                                   `outbox.publish`
    forget       -                                         runs of a node whose inboxes are gone   `inbox.Inboxes`
    register     -                                         a node's identity, info, doorbell       `nodes.Registration`
    mend         a stream that takes no more entries       -                                   `mend.mend`

All except create, take over, stop, drain, mend and those of nodes go through the fence.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from redis.client import Pipeline

from brokerfl.broker.blobs import Blobs, remove_blobs
from brokerfl.broker.change import Change, Parcel, Snapshot
from brokerfl.broker.contact import READ_ON, contact, open_streams, ring
from brokerfl.broker.context import SavedContext
from brokerfl.broker.data import Settled, remove_chunks, trim_data
from brokerfl.broker.echoes import Echo, send_echoes
from brokerfl.broker.ending import (
    Footprint,
    bury,
    close,
    delete,
    leave_nodes,
    read_footprint,
    remove_streams,
    tombstone_of,
)
from brokerfl.broker.events import Page
from brokerfl.broker.fence import Transaction
from brokerfl.broker.inbox import add_message, remove_message
from brokerfl.broker.keys import milliseconds
from brokerfl.broker.outbox import remove_replies
from brokerfl.broker.owner import Owner
from brokerfl.broker.ownership import Ownership
from brokerfl.broker.remains import Remains, read_remains
from brokerfl.broker.requests import heeded
from brokerfl.wire.manifest import Manifest
from brokerfl.wire.payload import Payload
from brokerfl.wire.run import encode_run


class Transactions:
    """Makes the transactions of one run.

    Args:
        owner: the run's owner; also an attribute.
        context: the ServerApp's saved state.
        blobs: what the run has broadcast.
    """

    def __init__(self, owner: Owner, context: SavedContext, blobs: Blobs) -> None:
        self.owner = owner
        self._context = context
        self._blobs = blobs
        self._connection = owner.connection
        self._keys = owner.connection.keys
        self._run_id = owner.run.run_id
        self._frame = encode_run(owner.run)

    def commit(self, change: Change, page: Page = ()) -> Transaction:
        """Change the books, and what follows from that elsewhere. Answers with the entry of each parcel.

        Args:
            change: what changes.
            page: events to add; none to a change that only deletes, which would then need room.
        """

        def run(pipe: Pipeline) -> None:
            self.owner.books.change(pipe, change)
            if change.state is not None:
                self._context.write(pipe, change.state)
            self._blobs.remove_manifests(pipe)
            if page and self.owner.events is not None:
                self.owner.events.add(pipe, [page])
            self._take_back(pipe, change.recalled)
            self._take_back(pipe, change.parcels)
            self._deliver(pipe, change.parcels, change.contacted)

        return Transaction(
            "commit",
            run,
            (
                *self._contacts(change.contacted),
                *self._rings(change),
                *self._trims(change),
                *self._blobs.remove_chunks(change.idle),
            ),
            answers=len(change.parcels),
            frees=change.frees,
        )

    def send(self, parcels: Sequence[Parcel], strays: Iterable[tuple[int, str]] = ()) -> Transaction:
        """Put accepted messages into inboxes, behind a first contact. Answers with the entry of each.

        Args:
            parcels: the messages.
            strays: entries, as node id and entry id, that belong to no open message; they are removed.
        """
        nodes = dict.fromkeys(parcel.node_id for parcel in parcels)

        def run(pipe: Pipeline) -> None:
            self.owner.books.add_nodes(pipe, nodes)
            for node_id, entry_id in strays:
                remove_message(pipe, self._keys, node_id, self._run_id, entry_id)
            self._deliver(pipe, parcels, nodes)

        return Transaction("send", run, echoes=self._contacts(nodes), answers=len(parcels), frees=not parcels)

    def announce(self, node_ids: Collection[int]) -> Transaction:
        """Write the run's frame again, and tell the nodes that the run has contacted."""
        return Transaction("announce", self.owner.books.write_frame, echoes=self._contacts(node_ids))

    def leave(self, nodes: Collection[int]) -> Transaction:
        """Delete what the run has at nodes that are gone for good."""

        def run(pipe: Pipeline) -> None:
            remove_streams(pipe, self._keys, self._run_id, nodes)
            self.owner.books.remove_nodes(pipe, nodes)

        return Transaction("leave", run, echoes=leave_nodes(self._keys, self._run_id, nodes), frees=True)

    def verdict(self, parcels: Sequence[Parcel]) -> Transaction:
        """Take messages out of the inboxes."""
        return Transaction("verdict", lambda pipe: self._take_back(pipe, parcels), frees=True)

    def heeded(self, message_ids: Collection[str]) -> None:
        """Note at once that these messages, which an operator asked to cancel, have left the books."""
        self.owner.fence.execute(heeded(self._keys, self._run_id, message_ids))

    def contact(self, nodes: Collection[int]) -> None:
        """Tell nodes of the run once more: they owe a reply, and may have missed that it contacted them."""
        send_echoes(self._connection, self._contacts(nodes))

    def _contacts(self, nodes: Iterable[int]) -> tuple[Echo, ...]:
        keys, run_id, frame, retention = self._keys, self._run_id, self._frame, self.owner.retention
        return tuple(
            (keys.ctl(node), lambda pipe, node=node: contact(pipe, keys, node, run_id, frame, retention))
            for node in nodes
        )

    def _rings(self, change: Change) -> tuple[Echo, ...]:
        """Return a ring for each node that cannot read its inbox together with its doorbell, and is not contacted."""
        if not self._connection.is_divided:
            return ()
        keys, run_id, word = self._keys, self._run_id, f"{READ_ON} {self._run_id}"
        nodes = dict.fromkeys(parcel.node_id for parcel in change.parcels)
        return tuple(
            (keys.ctl(node), lambda pipe, node=node: ring(pipe, keys, node, word))
            for node in nodes
            if node not in change.contacted
            and not self._connection.shares_slot(keys.ctl(node), keys.inbox(node, run_id))
        )

    def _trims(self, change: Change) -> tuple[Echo, ...]:
        """Return the deletion of chunks of no reply; what nothing needs now is gone up to now."""
        if not change.needed_from:
            return ()
        clock, keys, run_id = self._connection.clock, self._keys, self._run_id
        now = f"{milliseconds(clock.time() + clock.skew)}-0"
        return tuple(
            (keys.ctl(node), lambda pipe, node=node, first=first: trim_data(pipe, keys, node, run_id, first or now))
            for node, first in change.needed_from.items()
        )

    def _take_back(self, pipe: Pipeline, parcels: Iterable[Parcel]) -> None:
        for parcel in parcels:
            if parcel.former:
                remove_message(pipe, self._keys, parcel.node_id, self._run_id, *parcel.former)

    def _deliver(self, pipe: Pipeline, parcels: Iterable[Parcel], contacted: Iterable[int]) -> None:
        """The result of each entry is its id, or None where the node has no inbox for this run: first contact again."""
        for node_id in contacted:
            open_streams(pipe, self._keys, node_id, self._run_id, self.owner.retention)
        for parcel in parcels:
            add_message(pipe, self._keys, parcel.node_id, self._run_id, parcel.fields)

    def upload(self, manifest: Manifest) -> Transaction:
        """Note a content whose chunks are brought to Redis next."""
        return Transaction("upload", lambda pipe: self._blobs.write_manifest(pipe, manifest))

    def withdraw(self, payload: Payload, indices: Iterable[int]) -> None:
        """Delete chunks that were written for a push which found out that the run belongs to somebody else."""
        chunks = [payload.manifest.chunks[index] for index in indices]
        send_echoes(self._connection, remove_blobs(self._keys, self._run_id, chunks))

    def restore(self, snapshot: Snapshot, footprint: Footprint) -> Transaction:
        """Write again what the run has in its slot as this process remembers it, with the lifetimes of all its keys."""

        def run(pipe: Pipeline) -> None:
            self._context.write_again(pipe)
            self._blobs.write_manifests_again(pipe)
            self.owner.write(pipe, snapshot)
            self.owner.expire_streams(pipe, footprint.nodes)

        strays = self._blobs.remove_strays()
        return Transaction("restore", run, (*self.owner.expire_elsewhere(footprint), *strays, self.owner.entry))

    def close(self, footprint: Footprint, pages: Sequence[Page] = ()) -> Transaction:
        """Begin the end of the run, of which these are the last events."""
        everything = footprint | Footprint(chunks=self._blobs.leaving())
        return close(self._connection, self._run_id, everything, pages=pages)

    def close_again(self, footprint: Footprint) -> Transaction:
        """Begin the end of the run again: Redis forgot that, and perhaps what the run had left before."""
        return self.close(footprint | read_footprint(self._connection, self._run_id))

    def clear(self, footprint: Footprint) -> None:
        """Delete once more what the run, which has ended, had elsewhere: a server there may have forgotten that."""
        send_echoes(self._connection, self.close(footprint).echoes)

    def read_remains(self) -> Remains | None:
        """Return what is to remain of the run, which is closed."""
        return read_remains(self._connection, self._run_id)

    def delete(self, remains: Remains | None = None) -> Transaction:
        """End the run, which is closed. Answers as `ending.delete`."""
        return delete(self._connection, self._run_id, self._tombstone, remains)

    def bury(self) -> None:
        """There was no room for the tombstone: make some, or do without."""
        bury(self._connection, self._run_id, self._tombstone)

    @property
    def _tombstone(self) -> Ownership:
        return tombstone_of(self._connection, self.owner.fence.counter, stopped=False)

    def dropping(self, dropped: Sequence[Settled], transaction: Transaction) -> Transaction:
        """The same, after the deletion of replies that matched nothing: only the run's owner may do that."""
        if not dropped:
            return transaction

        def run(pipe: Pipeline) -> None:
            remove_replies(pipe, self._keys, self._run_id, dropped)
            transaction.run(pipe)

        return replace(
            transaction, run=run, echoes=(*transaction.echoes, *remove_chunks(self._keys, self._run_id, dropped))
        )

    def saved(self, change: Change) -> None:
        """A commit was executed: note what Redis has of the context and of the contents."""
        if change.state is not None:
            self._context.saved(change.state)
        self._blobs.removed(change.idle)
        self._blobs.dropped()
