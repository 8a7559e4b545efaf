"""The guard of a node: serves only runs and messages that an owner signed whom it trusts, and signs its replies.

Owns what a node checks, and what of its replies is signed and sealed. It must not know Redis, or where keys come from.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from brokerfl.common import SUPERLINK_NODE_ID, Error, FrameError, Metadata
from brokerfl.common.identity import Identity, Owner, Trusted
from brokerfl.wire.cipher import CLEAR, Cipher
from brokerfl.wire.frame import SEALED, Fields
from brokerfl.wire.guard import Data, NodeGuard
from brokerfl.wire.message import decode_header, encode_message, is_message_id
from brokerfl.wire.owner_guard import opened_config, said_of
from brokerfl.wire.run import Run, decode_run
from brokerfl.wire.run_key import commitment_to, sealing_contents, sealing_replies, unwrapped
from brokerfl.wire.signing import DistrustError, check_signature, signed, statement_of

#: Of how many sealed runs a node remembers for whom its replies are, although it may know nothing else of them.
_REMEMBERED = 1000

#: Seconds by which the clocks of a ServerApp and a node may differ, and by which an upload may delay a message.
MOST_SKEW = 600.0


@dataclass(frozen=True)
class _Known:
    """A run that this node trusts."""

    owner: Owner
    contents: Cipher = CLEAR


class TrustingNode(NodeGuard):
    """Trusts some owners of runs.

    Args:
        node_id: the node.
        identity: who the node is.
        trusted: whose runs it serves.
        seals: it serves only sealed runs.
    """

    def __init__(self, node_id: int, identity: Identity, trusted: Trusted, *, seals: bool = False) -> None:
        self._node_id = node_id
        self._identity, self._trusted, self._seals = identity, trusted, seals
        self._runs: dict[int, _Known] = {}
        self._ciphers: OrderedDict[int, Cipher] = OrderedDict()  # of replies

    # Runs.

    def run(self, run_id: int, frame: bytes) -> Run:
        """Return a run that an owner signed whom this node trusts, with its config."""
        self._runs.pop(run_id, None)
        run = decode_run(run_id, frame)
        proof = run.proof
        if proof is None:
            raise DistrustError("the run is not signed")
        owner = self._trusted.owner(proof.owner)
        if owner is None:
            raise DistrustError("this node does not trust the owner of the run")
        if not owner.may_own(run_id):  # what this node knows of another owner's run would be open to this one
            raise DistrustError(f"a run with this id is not one of {owner.name}, who signed it")
        check_signature(proof.owner, said_of(run, self.data_set), {b"s": proof.signature}, f"{owner.name}, its owner")
        if not proof.commitment:
            if self._seals:
                raise DistrustError("the run is not sealed, and this node serves only sealed ones")
            self._runs[run_id] = _Known(owner)
            return run
        if not proof.wrapped:
            raise FrameError("the run is sealed, and has no key for this node: its owner does not know this node's")
        private = self._identity.exchange
        key = unwrapped(proof.wrapped, private, self.data_set, run_id)
        if commitment_to(key) != proof.commitment:
            raise DistrustError("its key is another one than its owner signed")
        contents = sealing_contents(key)
        run = opened_config(run, contents)
        replies = sealing_replies(key, private, proof.exchange, self.data_set, run_id, self._node_id)
        self._runs[run_id] = _Known(owner, contents)
        self._ciphers[run_id] = replies
        self._ciphers.move_to_end(run_id)
        if len(self._ciphers) > _REMEMBERED:
            self._ciphers.popitem(last=False)
        return run

    def owner_of(self, run_id: int) -> Owner | None:
        """Return the owner who signed a run."""
        known = self._runs.get(run_id)
        return None if known is None else known.owner

    def knows(self, run_id: int) -> bool:
        """Whether a run is one that this node trusts."""
        return run_id in self._runs

    def forget(self, run_ids: Iterable[int]) -> None:
        """These runs are over."""
        for run_id in run_ids:
            self._runs.pop(run_id, None)

    def clear(self) -> None:
        """Forget all runs."""
        self._runs.clear()

    # Messages.

    def check(self, run_id: int, message_id: str, metadata: Metadata, fields: Mapping[bytes, Data]) -> None:
        """Check that the run's owner signed a message as it is, for this node, not long ago."""
        known = self._known(run_id)
        told = metadata.run_id, metadata.src_node_id, metadata.dst_node_id, metadata.reply_to_message
        if told != (run_id, SUPERLINK_NODE_ID, self._node_id, ""):
            raise DistrustError("it was sent to another node, or in another run")
        if not is_message_id(run_id, message_id):
            raise DistrustError("its id is not one of its run")
        said = statement_of("message", self.data_set, message_id, metadata, None, fields)
        check_signature(known.owner.signing, said, fields, f"{known.owner.name}, the owner of its run")
        age = time.time() - metadata.created_at
        if not -MOST_SKEW <= age <= metadata.ttl + MOST_SKEW:
            raise DistrustError(
                f"by this node's clock it was made {age:.0f} s ago, and was to live for {metadata.ttl:.0f} s"
            )

    def _known(self, run_id: int) -> _Known:
        known = self._runs.get(run_id)
        if known is None or self._trusted.owner(known.owner.signing) is None:
            raise DistrustError("this node does not trust its run")
        return known

    def contents(self, run_id: int) -> Cipher:
        """Return the cipher of what a run sends."""
        known = self._runs.get(run_id)
        return CLEAR if known is None else known.contents

    def replies(self, run_id: int) -> Cipher:
        """Return the cipher of what this node replies to a run.

        A run may end, or its frame be changed, while its message is executed: what is replied then is sealed, too.
        """
        return self._ciphers.get(run_id, CLEAR)

    def tells(self, run_id: int) -> bool:
        """Whether a run is not sealed."""
        return run_id not in self._ciphers

    def protected(self, run_id: int, message_id: str, reply: Fields) -> Fields:
        """Return the fields of a reply, signed, and the reason of an Error sealed."""
        metadata, error = decode_header(reply)
        cipher = self.replies(run_id)
        if error is not None and cipher is not CLEAR:
            told = memoryview((error.reason or "").encode())
            error = Error(error.code, None)
            reply = {**encode_message(message_id, metadata, error=error), SEALED: bytes(cipher.seal(told))}
        said = statement_of("reply", self.data_set, message_id, metadata, error, reply)
        return signed(self._identity.signing, said, reply)
