"""The transactions: everything that happens atomically.

Owns what a run's owner does in one MULTI … EXEC, and in which order: first the commands in the run's own slot, then
those in nodes' slots. It must not know a message's state, or whether a transaction was executed.

    create     owner, books, bell and lease of a new run; `owner.create_run`
    take over  another owner and its lease; `owner.resume_run`
    renew      a lease that lapsed during an outage; `owner.Owner.renew`
    seal       an owner's transactions that are still on their way take no effect; `fence.Fence.seal`
    upload     the manifest of a content, and some of its chunks
    commit     run: ledger, counts, nodes, context, removal of manifests and chunks no longer needed
               node: removal of chunks no longer needed, cancelled messages out, first contact, messages in
    send       run: nodes. node: first contact, messages in
    verdict    node: messages out, a ring, and one more look into the outbox
    restore    run: owner, books, context, manifests, bell, lease, lifetimes, which Redis may have forgotten
    rewrite    chunks that Redis forgot
    repair     node: entries out that belong to no open message; first contact and messages in, as in send
    delete     every key of a run, and the mark that it ended; also by `runs.stop_run`
    stop       another owner, the status, a ring; `runs.stop_run`
    publish    node: replies into the outbox, messages out of the inbox, rings; `outbox.publish`
    forget     node: runs whose inboxes are gone; `inbox.Inboxes`
    register   a node's identity, info, doorbell; `nodes.Registration`

All except create, take over, stop and those of nodes go through the fence.
"""

from collections.abc import Collection, Iterable, Sequence

from redis.client import Pipeline

from brokerfl.broker.blobs import Blobs
from brokerfl.broker.books import Change, Parcel, Snapshot
from brokerfl.broker.context import SavedContext
from brokerfl.broker.fence import Transaction
from brokerfl.broker.inbox import add_message, first_contact, remove_message, ring
from brokerfl.broker.outbox import Outboxes, Settled, remove_replies, trim_data
from brokerfl.broker.owner import Owner
from brokerfl.broker.runs import Footprint, delete_run
from brokerfl.wire.payload import Payload
from brokerfl.wire.run import encode_run


class Transactions:
    """Makes the transactions of one run.

    Args:
        owner: the run's owner; also an attribute.
        context: the ServerApp's saved state.
        blobs: what the run has broadcast.
        outboxes: have the cursors from which a verdict looks once more.
    """

    def __init__(self, owner: Owner, context: SavedContext, blobs: Blobs, outboxes: Outboxes) -> None:
        self.owner = owner
        self._context = context
        self._blobs = blobs
        self._outboxes = outboxes
        self._keys = owner.connection.keys
        self._run_id = owner.run.run_id
        self._frame = encode_run(owner.run)

    def commit(self, change: Change) -> Transaction:
        """Change the books, and what follows from that at the nodes. Its results are the entries of the parcels."""

        def build(pipe: Pipeline) -> None:
            self.owner.books.change(pipe, change)
            if change.state is not None:
                self._context.write(pipe, change.state)
            self._blobs.remove(pipe, change.idle)
            for node_id, needed_from in change.needed_from.items():
                trim_data(pipe, self._keys, node_id, self._run_id, needed_from)
            self._take_back(pipe, change.cancelled)
            self._take_back(pipe, change.parcels, rings=False)
            self._deliver(pipe, change.parcels, change.contacted)

        return Transaction("commit", build, answers=len(change.parcels), frees=change.frees)

    def send(self, parcels: Sequence[Parcel]) -> Transaction:
        """Put accepted messages into inboxes, after a first contact. Its results are the entries of the messages."""
        nodes = {parcel.node_id for parcel in parcels}

        def build(pipe: Pipeline) -> None:
            self.owner.books.add_nodes(pipe, nodes)
            self._deliver(pipe, parcels, nodes)

        return Transaction("send", build, answers=len(parcels))

    def repair(self, parcels: Sequence[Parcel], strays: Iterable[tuple[int, str]]) -> Transaction:
        """Like `send`, after the removal of entries (node id, entry id) that belong to no open message."""
        sending = self.send(parcels)

        def build(pipe: Pipeline) -> None:
            for node_id, entry_id in strays:
                remove_message(pipe, self._keys, node_id, self._run_id, entry_id)
            sending.build(pipe)

        return Transaction("repair", build, answers=sending.answers, frees=not parcels)

    def verdict(self, parcels: Sequence[Parcel], nodes: Collection[int]) -> Transaction:
        """Take messages out of the inboxes. Its results are what is new in the outboxes of ``nodes``, theirs."""

        def build(pipe: Pipeline) -> None:
            self._take_back(pipe, parcels)
            for node_id in nodes:
                self._outboxes.read_more(pipe, node_id)

        return Transaction("verdict", build, answers=len(nodes), frees=True)

    def _take_back(self, pipe: Pipeline, parcels: Sequence[Parcel], *, rings: bool = True) -> None:
        for parcel in parcels:
            if parcel.former:
                remove_message(pipe, self._keys, parcel.node_id, self._run_id, *parcel.former)
        if rings:
            for node_id in dict.fromkeys(parcel.node_id for parcel in parcels):
                ring(pipe, self._keys, node_id)

    def _deliver(self, pipe: Pipeline, parcels: Sequence[Parcel], contacted: Iterable[int]) -> None:
        """The result of each entry is its id, or None if the node has no inbox for this run: contact it again."""
        for node_id in contacted:
            first_contact(pipe, self._keys, node_id, self._run_id, self._frame, self.owner.retention)
        for parcel in parcels:
            add_message(pipe, self._keys, parcel.node_id, self._run_id, parcel.fields)

    def upload(self, payload: Payload, indices: Sequence[int]) -> Transaction:
        """Upload some chunks of a content, the first ones with its manifest."""
        return Transaction("upload", lambda pipe: self._blobs.upload(pipe, payload, indices))

    def restore(self, snapshot: Snapshot, footprint: Footprint) -> Transaction:
        """Write the run's own keys again, as this process remembers them."""

        def build(pipe: Pipeline) -> None:
            self._context.write_again(pipe)
            self._blobs.write_all_again(pipe)
            self.owner.write(pipe, snapshot, footprint)  # last, because it sets the lifetimes of all of them

        return Transaction("restore", build)

    def rewrite(self, digests: Sequence[bytes]) -> Transaction:
        """Write the chunks that Redis forgot."""
        return Transaction("rewrite", lambda pipe: self._blobs.write_chunks_again(pipe, digests))

    def delete(self, footprint: Footprint) -> Transaction:
        """Delete every key of the run."""

        def build(pipe: Pipeline) -> None:
            delete_run(pipe, self.owner.connection, self._run_id, footprint, stopped=False)

        return Transaction("delete", build, frees=True)

    def dropping(self, dropped: Sequence[Settled], transaction: Transaction) -> Transaction:
        """The same, after the deletion of replies that matched nothing: only the run's owner may do that."""
        if not dropped:
            return transaction

        def build(pipe: Pipeline) -> None:
            remove_replies(pipe, self.owner.connection, self._run_id, dropped)
            transaction.build(pipe)

        return Transaction(transaction.name, build, transaction.answers, transaction.frees)

    def saved(self, change: Change) -> None:
        """A commit was executed: note what Redis has of the context and of the contents."""
        if change.state is not None:
            self._context.saved(change.state)
        self._blobs.removed(change.idle)
