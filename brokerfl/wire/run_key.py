"""The key of a sealed run: how it reaches those who may have it, and what is sealed with what comes from it.

Owns which key is derived from which. It must not know frames or messages.

    run key      32 random bytes a run, wrapped for each of its nodes: seals what the run sends, and its config
    own key      32 random bytes a run, wrapped only for its owner, with the run key: seals the ServerApp's state
    reply key    what X25519 gives a node and the owner, and the run key: seals what this node replies, for the owner

Wrapping is X25519 with a key that is used once, HKDF-SHA256, and AES-256-GCM. The run's frame, which its owner signs,
has a commitment to the run key: who writes to Redis cannot make a node use another.
"""

import secrets

from brokerfl.common import FrameError, crypto
from brokerfl.wire.cipher import Sealing
from brokerfl.wire.signing import statement


def new_key() -> bytes:
    """Return 32 random bytes."""
    return secrets.token_bytes(crypto.KEY)


def commitment_to(run_key: bytes) -> bytes:
    """Return what shows that a key is this one, and nothing else of it."""
    return crypto.derive(run_key, b"brokerfl/1 commitment")


def wrapped(key: bytes, public: bytes, data_set: bytes, run_id: int) -> bytes:
    """Return a key of a run as only the owner of a public X25519 key can read it."""
    private, once = crypto.new_exchange()
    return once + crypto.encrypt(_wrapping(private, public, once + public, data_set, run_id), _ONCE, key)


#: The nonce of wrapping: the key is used only once.
_ONCE = bytes(crypto.NONCE)


def unwrapped(data: bytes, private: bytes, data_set: bytes, run_id: int) -> bytes:
    """Return the key that was wrapped for the owner of a private X25519 key.

    Raises:
        FrameError: it was wrapped for somebody else, or changed.
    """
    once, sealed = data[: crypto.KEY], data[crypto.KEY :]
    try:
        both = once + crypto.exchange_public(private)
        return crypto.decrypt(_wrapping(private, once, both, data_set, run_id), _ONCE, sealed)
    except crypto.CannotOpen:
        raise FrameError("its key cannot be unwrapped: it was changed, or wrapped for somebody else") from None


def _wrapping(private: bytes, public: bytes, both: bytes, data_set: bytes, run_id: int) -> bytes:
    return crypto.derive(crypto.agree(private, public), statement("wrap", data_set, run_id, both))


def sealing_contents(run_key: bytes) -> Sealing:
    """Return the cipher of what a run sends to its nodes, and of its config."""
    return Sealing(run_key, b"contents")


def sealing_state(own_key: bytes) -> Sealing:
    """Return the cipher of what only the run's owner reads."""
    return Sealing(own_key, b"state")


def sealing_replies(run_key: bytes, private: bytes, public: bytes, data_set: bytes, run_id: int, node: int) -> Sealing:
    """Return the cipher of the replies of one node.

    Args:
        run_key: the run's.
        private: the X25519 key of the one, who makes the cipher.
        public: the X25519 key of the other.
        data_set: the identity of the Redis data set.
        run_id: the run.
        node: the node's id.

    Raises:
        FrameError: the public key is none.
    """
    try:
        shared = crypto.agree(private, public)
    except crypto.CannotOpen:
        raise FrameError(f"the X25519 key of node {node} or of its run's owner is none") from None
    return Sealing(crypto.derive(shared, statement("replies", data_set, run_id, node), run_key), b"replies")
