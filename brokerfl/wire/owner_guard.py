"""The guard of a run's owner: signs what the run sends, checks its replies, and seals and opens both if it is asked to.

Owns what of a run is signed and sealed, on the side of its ServerApp. It must not know Redis, or where keys come from.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from brokerfl.common import SUPERLINK_NODE_ID, Error, FrameError, Metadata, crypto
from brokerfl.common.identity import Identity, PublicKeys, Trusted
from brokerfl.wire.cipher import CLEAR, Cipher
from brokerfl.wire.frame import SEALED, Fields, pack, unpack
from brokerfl.wire.guard import Data, RunGuard
from brokerfl.wire.message import decode_header, encode_message
from brokerfl.wire.run import LedgerEntry, Proof, Run, encode_run
from brokerfl.wire.run_key import (
    commitment_to,
    new_key,
    sealing_contents,
    sealing_replies,
    sealing_state,
    unwrapped,
    wrapped,
)
from brokerfl.wire.signing import DistrustError, check_signature, digest_of, signed, statement, statement_of


@dataclass(frozen=True)
class Secrets:
    """The keys of a sealed run: see `run_key`."""

    run_key: bytes
    own_key: bytes

    @classmethod
    def new(cls) -> "Secrets":
        """Return random ones."""
        return cls(new_key(), new_key())


class OwnerGuard(RunGuard):
    """Signs for one run, and with ``secrets`` also seals.

    Args:
        identity: who the owner is.
        trusted: whose replies are trusted.
        data_set: the identity of the Redis data set.
        run_id: the run.
        secrets: of a sealed run.
    """

    is_signed = True

    def __init__(
        self, identity: Identity, trusted: Trusted, data_set: bytes, run_id: int, secrets: Secrets | None
    ) -> None:
        self._identity, self._trusted = identity, trusted
        self._data_set, self._run_id = data_set, run_id
        self._secrets = secrets
        self._lock = threading.Lock()
        self._wrapped: dict[tuple[bytes, bytes], bytes] = {}
        self._replies: dict[tuple[int, bytes], Cipher] = {}
        if secrets is not None:
            self.is_sealed = True
            self.contents, self.state = sealing_contents(secrets.run_key), sealing_state(secrets.own_key)

    # Frames.

    def frame(self, run: Run) -> bytes:
        """Return the run's signed frame, with its keys for whoever resumes it."""
        shown = self._signed(run)
        if self._secrets is None:
            return encode_run(shown)
        both = self._secrets.run_key + self._secrets.own_key
        return encode_run(_with_key(shown, self._wrap(both, self._exchange)))

    def frames(self, run: Run) -> Callable[[int], bytes]:
        """Return a function that returns the run's signed frame for a node, with its key for that."""
        return partial(self._frame_for, self._signed(run))

    def _frame_for(self, shown: Run, node_id: int) -> bytes:
        keys = self._trusted.nodes.get(node_id)
        if keys is None or self._secrets is None:
            return encode_run(shown)
        return encode_run(_with_key(shown, self._wrap(self._secrets.run_key, keys.exchange)))

    def _wrap(self, key: bytes, public: bytes) -> bytes:
        """Return a key, wrapped once for each reader, so that the frame stays the same."""
        with self._lock:
            if (key, public) not in self._wrapped:
                try:
                    self._wrapped[key, public] = wrapped(key, public, self._data_set, self._run_id)
                except crypto.CannotOpen:  # no public key: its node is told of the run, and cannot read it
                    self._wrapped[key, public] = b""
            return self._wrapped[key, public]

    @property
    def _exchange(self) -> bytes:
        return crypto.exchange_public(self._identity.exchange)

    def _signed(self, run: Run) -> Run:
        """Return a run as everybody may see it."""
        encode_run(run)  # says what cannot be sent
        proof, config = Proof(crypto.signing_public(self._identity.signing), self._exchange), b""
        if self._secrets is not None:
            config = bytes(self.contents.seal(memoryview(pack([run.run_config, run.overrides]))))
            proof = replace(proof, commitment=commitment_to(self._secrets.run_key), config=config)
            run = replace(run, run_config={}, overrides=None)
        said = said_of(replace(run, proof=proof), self._data_set)
        return replace(run, proof=replace(proof, signature=crypto.sign(self._identity.signing, said)))

    # Messages and replies.

    def encode(self, message_id: str, metadata: Metadata, content: Fields) -> Fields:
        """Return the signed fields of a message."""
        fields = encode_message(message_id, metadata, content)
        said = statement_of("message", self._data_set, message_id, metadata, None, fields)
        return signed(self._identity.signing, said, fields)

    def replies_of(self, node_id: int) -> Cipher:
        """Return the cipher of what a node replies.

        Raises:
            DistrustError: nobody vouches for the node.
        """
        if self._secrets is None:
            return CLEAR
        public = self._keys_of(node_id).exchange
        with self._lock:
            if (node_id, public) not in self._replies:
                self._replies[node_id, public] = sealing_replies(
                    self._secrets.run_key, self._identity.exchange, public, self._data_set, self._run_id, node_id
                )
            return self._replies[node_id, public]

    def _keys_of(self, node_id: int) -> PublicKeys:
        keys = self._trusted.nodes.get(node_id)
        if keys is None:
            raise DistrustError("no public key of its node is known: it is not among the members")
        return keys

    def opened(self, node_id: int, message_id: str, entry: LedgerEntry, fields: Fields) -> Fields:
        """Return the fields of a reply in clear, but for a large content, once they are found to be as signed."""
        metadata, error = decode_header(fields)
        keys, who = self._keys_of(node_id), f"node {node_id}"
        told = metadata.run_id, metadata.src_node_id, metadata.dst_node_id, metadata.reply_to_message
        if told != (self._run_id, node_id, SUPERLINK_NODE_ID, message_id):
            raise DistrustError("it answers another message, or is of another run or node")
        kind = metadata.group_id, metadata.message_type
        if kind != (entry.group_id, entry.message_type) and (error is None or kind != ("", "")):
            raise DistrustError("it answers a message of another group or type")
        said = statement_of("reply", self._data_set, message_id, metadata, error, fields)
        check_signature(keys.signing, said, fields, who)
        if error is None:
            return self.replies_of(node_id).opened(fields)
        if SEALED not in fields:  # a node that cannot read the run seals nothing
            return fields
        reason = bytes(self.replies_of(node_id).open(fields[SEALED])).decode(errors="replace")
        return encode_message(message_id, metadata, error=Error(error.code, reason))

    # The state.

    def written(self, state: Fields, what: str = "state") -> Fields:
        """Return the signed fields of a state; nothing of an empty one."""
        return signed(self._identity.signing, self._said_of(what, state), state) if state else state

    def check_state(self, state: Mapping[bytes, Data], what: str = "state") -> None:
        """Check the fields of a state that was saved."""
        check_signature(crypto.signing_public(self._identity.signing), self._said_of(what, state), state, "its owner")

    def _said_of(self, what: str, state: Mapping[bytes, Data]) -> bytes:
        return statement(what, self._data_set, self._run_id, digest_of(state))


def _with_key(shown: Run, key: bytes) -> Run:
    assert shown.proof is not None
    return replace(shown, proof=replace(shown.proof, wrapped=key))


def said_of(run: Run, data_set: bytes) -> bytes:
    """Return what is signed of a run: its frame without the signature and the key for one reader."""
    assert run.proof is not None
    bare = replace(run, proof=replace(run.proof, signature=b"", wrapped=b""))
    return statement("run", data_set, run.run_id, crypto.digest(encode_run(bare)))


def take_up(identity: Identity, trusted: Trusted, data_set: bytes, run: Run) -> tuple[OwnerGuard, Run]:
    """Return the guard of a run that this owner resumes, and the run in clear.

    Raises:
        DistrustError: somebody else owns it, or its frame was changed.
        FrameError: it cannot be opened.
    """
    proof = run.proof
    if proof is None:
        raise DistrustError(f"run {run.run_id} is not signed: resume it without --sign")
    if proof.owner != crypto.signing_public(identity.signing):
        raise DistrustError(f"run {run.run_id} belongs to another owner than {identity.name}")
    try:
        check_signature(proof.owner, said_of(run, data_set), {b"s": proof.signature}, identity.name)
    except DistrustError as error:
        raise DistrustError(f"the frame of run {run.run_id}: {error}") from None
    secrets = None
    if proof.commitment:
        try:
            keys = unwrapped(proof.wrapped, identity.exchange, data_set, run.run_id)
        except FrameError as error:
            raise FrameError(f"run {run.run_id}: {error}") from None
        secrets = Secrets(keys[:32], keys[32:])
        if commitment_to(secrets.run_key) != proof.commitment:
            raise DistrustError(f"run {run.run_id}: its key is another one than its frame says")
        run = opened_config(run, sealing_contents(secrets.run_key))
    return OwnerGuard(identity, trusted, data_set, run.run_id, secrets), replace(run, proof=None)


def opened_config(run: Run, cipher: Cipher) -> Run:
    """Return a sealed run with its config.

    Raises:
        FrameError: the config cannot be opened.
    """
    assert run.proof is not None
    try:
        match unpack(bytes(cipher.open(run.proof.config))):
            case [dict(config), None]:
                return replace(run, run_config=config)
            case [dict(config), list(overrides)]:
                return replace(run, run_config=config, overrides=tuple(overrides))
    except FrameError as error:
        raise FrameError(f"the config of run {run.run_id}: {error}") from None
    raise FrameError(f"the config of run {run.run_id} is malformed")
