"""Changes: what one commit does to a run, and everything that its books hold.

Owns what belongs together in them. It must not know how they are written.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from brokerfl.wire.frame import Fields
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.run import LedgerEntry


class Parcel(NamedTuple):
    """A message on its way into its node's inbox.

    Attributes:
        node_id: the node.
        message_id: the message's id.
        fields: what is sent; empty if the message is only taken out of the inbox.
        former: its former inbox entries, which are removed.
    """

    node_id: int
    message_id: str
    fields: Fields
    former: tuple[str, ...] = ()


#: Of how many groups a run knows that it has pushed them.
MOST_GROUPS = 1000


class Groups(NamedTuple):
    """Digests of groups that are not among the last that the run pushed.

    Attributes:
        digests: the digests.
        is_all: they replace those that are there.
        is_full: with them, there are too many.
    """

    digests: tuple[bytes, ...] = ()
    is_all: bool = False
    is_full: bool = False

    def __bool__(self) -> bool:
        return bool(self.digests)


_NO_GROUPS = Groups()


@dataclass(frozen=True)
class Change:
    """What one commit does to a run: all of it or nothing.

    Attributes:
        entered: the ledger entries of the messages that are sent, by id.
        new: the ids of the new ones.
        groups: those of their groups that are new.
        parcels: what goes into inboxes.
        contacted: the nodes among theirs that the run has not contacted before.
        settled: the ids of the messages whose replies the app has: they leave.
        cancelled: the ids of the messages that were not adopted: they leave.
        recalled: the inbox entries that are no longer needed: of what is cancelled, and of what was sent again for a
            reply that the app has had in the meantime.
        state: the ServerApp's, if it differs from what the last commit saved.
        idle: the contents that are no longer needed, as Redis calls them.
        needed_from: for each node the first entry of its data stream that may still be needed; "" for none.
        messages: how many messages the run has pushed, with these.
        replies: how many of them are settled, with these.
    """

    entered: Mapping[str, LedgerEntry] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    groups: Groups = _NO_GROUPS
    parcels: tuple[Parcel, ...] = ()
    contacted: Collection[int] = ()
    settled: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    recalled: tuple[Parcel, ...] = ()
    state: EncodedContent | None = None
    idle: tuple[bytes, ...] = ()
    needed_from: Mapping[int, str] = field(default_factory=dict)
    messages: int = 0
    replies: int = 0

    def __bool__(self) -> bool:
        return bool(self.entered or self.leaving or self.idle or self.state is not None)

    @property
    def leaving(self) -> tuple[str, ...]:
        """The ids of the messages that leave the ledger."""
        return self.settled + self.cancelled

    @property
    def frees(self) -> bool:
        """Whether it only deletes."""
        return not self.entered and self.state is None


@dataclass(frozen=True)
class Snapshot:
    """Everything that the books hold: as they were read, or as they are to be restored.

    Attributes:
        entries: the ledger, by message id.
        nodes: the nodes that may hold keys of the run.
        messages: how many the run has pushed.
        replies: how many of them are settled.
        groups: the digests of the groups that it has pushed.
    """

    entries: Mapping[str, LedgerEntry] = field(default_factory=dict)
    nodes: Collection[int] = ()
    messages: int = 0
    replies: int = 0
    groups: Collection[bytes] = ()
