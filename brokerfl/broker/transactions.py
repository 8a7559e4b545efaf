"""The transactions: everything that happens atomically.

Owns what a run's owner does in one MULTI … EXEC, and which slot each step of it touches (`fence.Slot`): on one server
all steps are one EXEC, on a Cluster those outside the run's slot will have to follow it. It must not know what a
message's state is, or what became of a transaction.

                 run's slot                                nodes' slots, and slots of their own
    create       owner, books, lease, bell                 registry                            `owner.create_run`
    take over    owner, lease                              -                                   `owner.resume_run`
    renew        lease, if it has lapsed                   -                                   `owner.Owner.renew`
    seal         owner: what is on its way has no effect   -                                   `fence.Fence.seal`
    upload       manifest                                  chunks                              `Transactions`
    commit       books, context, manifests                 unneeded chunks; cancelled messages out, first contact,
                                                           messages in
    send         books: nodes                              strays out, first contact, messages in
    announce     the run's frame                           the run's frame at its nodes, a ring
    leave        books: nodes                              everything at nodes that are gone for good
    verdict      -                                         messages out
    restore      owner, books, context, manifests, bell    lifetimes, registry
    rewrite      -                                         chunks that Redis forgot
    delete       everything                                everything, registry                `runs.deletion`
    stop         owner, status, a ring                     -                                   `runs.stop_run`
    publish      a ring                                    a node's replies in, its messages out   `outbox.publish`
    forget       -                                         runs of a node whose inboxes are gone   `inbox.Inboxes`
    register     -                                         a node's identity, info, doorbell       `nodes.Registration`
    mend         the bell                                  a stream that takes no more entries     `mend.mend`

All except create, take over, stop, mend and those of nodes go through the fence.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from redis.client import Pipeline

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.books import Change, Parcel, Snapshot
from brokerfl.broker.context import SavedContext
from brokerfl.broker.data import trim_data
from brokerfl.broker.fence import Build, Slot, Transaction
from brokerfl.broker.inbox import add_message, first_contact, remove_message
from brokerfl.broker.outbox import Settled, remove_replies
from brokerfl.broker.owner import Owner
from brokerfl.broker.runs import Footprint, deletion, leave_nodes
from brokerfl.wire.payload import Payload
from brokerfl.wire.run import encode_run

Steps = tuple[tuple[Slot, Build], ...]


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
        self._keys = owner.connection.keys
        self._run_id = owner.run.run_id
        self._frame = encode_run(owner.run)

    def commit(self, change: Change) -> Transaction:
        """Change the books, and what follows from that elsewhere. Answers with the entry of each parcel."""

        def in_run(pipe: Pipeline) -> None:
            self.owner.books.change(pipe, change)
            if change.state is not None:
                self._context.write(pipe, change.state)

        def at_nodes(pipe: Pipeline) -> None:
            for node_id, needed_from in change.needed_from.items():
                trim_data(pipe, self._keys, node_id, self._run_id, needed_from)
            self._take_back(pipe, change.recalled)
            self._take_back(pipe, change.parcels)
            self._deliver(pipe, change.parcels, change.contacted)

        steps: Steps = (
            (Slot.RUN, in_run),
            (Slot.OWN, lambda pipe: self._blobs.remove_chunks(pipe, change.idle)),
            (Slot.RUN, lambda pipe: self._blobs.remove_manifests(pipe, change.idle)),  # by which chunks are found
            (Slot.NODE, at_nodes),
        )
        return Transaction("commit", steps, answers=len(change.parcels), frees=change.frees)

    def send(self, parcels: Sequence[Parcel], strays: Iterable[tuple[int, str]] = ()) -> Transaction:
        """Put accepted messages into inboxes, behind a first contact. Answers with the entry of each.

        Args:
            parcels: the messages.
            strays: entries, as node id and entry id, that belong to no open message; they are removed.
        """
        nodes = dict.fromkeys(parcel.node_id for parcel in parcels)

        def at_nodes(pipe: Pipeline) -> None:
            for node_id, entry_id in strays:
                remove_message(pipe, self._keys, node_id, self._run_id, entry_id)
            self._deliver(pipe, parcels, nodes)

        steps = ((Slot.RUN, lambda pipe: self.owner.books.add_nodes(pipe, nodes)), (Slot.NODE, at_nodes))
        return Transaction("send", steps, answers=len(parcels), frees=not parcels)

    def announce(self, node_ids: Iterable[int]) -> Transaction:
        """Write the run's frame again, and tell the nodes that the run has contacted."""

        def at_nodes(pipe: Pipeline) -> None:
            for node_id in node_ids:
                first_contact(pipe, self._keys, node_id, self._run_id, self._frame, self.owner.retention)

        steps = ((Slot.NODE, at_nodes), (Slot.RUN, self.owner.books.write_frame))
        return Transaction("announce", steps)

    def leave(self, nodes: Collection[int]) -> Transaction:
        """Delete what the run has at nodes that are gone for good."""
        steps: Steps = (
            (Slot.NODE, lambda pipe: leave_nodes(pipe, self._keys, self._run_id, nodes)),
            (Slot.RUN, lambda pipe: self.owner.books.remove_nodes(pipe, nodes)),
        )
        return Transaction("leave", steps, frees=True)

    def verdict(self, parcels: Sequence[Parcel]) -> Transaction:
        """Take messages out of the inboxes."""
        return Transaction("verdict", ((Slot.NODE, lambda pipe: self._take_back(pipe, parcels)),), frees=True)

    def _take_back(self, pipe: Pipeline, parcels: Iterable[Parcel]) -> None:
        for parcel in parcels:
            if parcel.former:
                remove_message(pipe, self._keys, parcel.node_id, self._run_id, *parcel.former)

    def _deliver(self, pipe: Pipeline, parcels: Iterable[Parcel], contacted: Iterable[int]) -> None:
        """The result of each entry is its id, or None where the node has no inbox for this run: first contact again."""
        for node_id in contacted:
            first_contact(pipe, self._keys, node_id, self._run_id, self._frame, self.owner.retention)
        for parcel in parcels:
            add_message(pipe, self._keys, parcel.node_id, self._run_id, parcel.fields)

    def upload(self, payload: Payload, indices: Sequence[int]) -> Transaction:
        """Bring some chunks of a content to Redis, the first ones with its manifest."""
        steps: Steps = (
            (Slot.RUN, lambda pipe: self._blobs.write_manifest(pipe, payload.manifest)),
            (Slot.OWN, lambda pipe: self._blobs.write_chunks(pipe, payload, indices)),
        )
        return Transaction("upload", steps)

    def restore(self, snapshot: Snapshot, footprint: Footprint) -> Transaction:
        """Write again what the run has in its slot as this process remembers it, with the lifetimes of all its keys."""

        def in_run(pipe: Pipeline) -> None:
            self._context.write_again(pipe)
            self._blobs.write_manifests_again(pipe)
            self.owner.write(pipe, snapshot)

        def own(pipe: Pipeline) -> None:
            self._blobs.remove_strays(pipe)
            self.owner.expire_chunks(pipe, footprint.chunks)
            self.owner.enter(pipe)

        steps: Steps = (
            (Slot.RUN, in_run),
            (Slot.NODE, lambda pipe: self.owner.expire_streams(pipe, footprint.nodes)),
            (Slot.OWN, own),
        )
        return Transaction("restore", steps)

    def rewrite(self, digests: Sequence[bytes]) -> Transaction:
        """Write chunks again that Redis forgot."""
        return Transaction("rewrite", ((Slot.OWN, lambda pipe: self._blobs.write_chunks_again(pipe, digests)),))

    def delete(self, footprint: Footprint) -> Transaction:
        """Delete every key of the run."""
        return replace(deletion(self.owner.connection, self._run_id, footprint, stopped=False), ends=True)

    def dropping(self, dropped: Sequence[Settled], transaction: Transaction) -> Transaction:
        """The same, after the deletion of replies that matched nothing: only the run's owner may do that."""
        if not dropped:
            return transaction

        def at_nodes(pipe: Pipeline) -> None:
            remove_replies(pipe, self.owner.connection, self._run_id, dropped)

        return replace(transaction, steps=((Slot.NODE, at_nodes), *transaction.steps))

    def saved(self, change: Change) -> None:
        """A commit was executed: note what Redis has of the context and of the contents."""
        if change.state is not None:
            self._context.saved(change.state)
        self._blobs.removed(change.idle)
