"""The key pairs of one party as text: Ed25519 to sign, X25519 to agree on keys for seals.

Owns how keys are written, and what is said if the package cryptography, of the extra ``secure``, is missing. It must
not know what is signed, where keys are kept, or how any of that is done: see `crypto`, which needs the package.
"""

import base64
import binascii
from dataclasses import dataclass, field

from brokerfl.common.errors import ConfigError, MissingExtra


def check_cryptography() -> None:
    """Check that the package cryptography is installed.

    Raises:
        MissingExtra: it is not.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingExtra("this needs the package cryptography: pip install 'brokerfl[secure]'") from None


def to_text(raw: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(raw).decode()


def to_bytes(text: str, size: int, what: str) -> bytes:
    """Return the ``size`` bytes that a text has in base64.

    Raises:
        ConfigError: it has not; the error calls it ``what``.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != size:
        raise ConfigError(f"{what} is not {size} bytes in base64")
    return raw


@dataclass(frozen=True)
class KeyPairs:
    """The private keys of one party, and what follows from them.

    Attributes:
        signing, sealing: the private keys of Ed25519 and X25519, 32 bytes in base64. They are never shown.
        ed25519, x25519: the public ones.
    """

    signing: str = field(repr=False)
    sealing: str = field(repr=False)
    ed25519: str
    x25519: str

    @classmethod
    def new(cls) -> "KeyPairs":
        """Make new ones.

        Raises:
            MissingExtra: cryptography is not installed.
        """
        check_cryptography()
        from brokerfl.common import crypto

        return cls.of(to_text(crypto.new_signing()), to_text(crypto.new_exchange()[0]))

    @classmethod
    def of(cls, signing: str, sealing: str) -> "KeyPairs":
        """Return those with these private keys.

        Raises:
            ConfigError: they are none.
            MissingExtra: cryptography is not installed.
        """
        check_cryptography()
        from brokerfl.common import crypto

        ed25519 = crypto.signing_public(_raw(signing))
        x25519 = crypto.exchange_public(to_bytes(sealing, 32, "the X25519 key"))
        return cls(signing, sealing, to_text(ed25519), to_text(x25519))

    def sign(self, data: bytes) -> bytes:
        """Return the signature of ``data``, 64 bytes."""
        from brokerfl.common import crypto

        return crypto.sign(_raw(self.signing), data)


def is_signed(ed25519: str, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` is that of ``data`` by the owner of this public key, 32 bytes in base64.

    Raises:
        MissingExtra: cryptography is not installed.
    """
    check_cryptography()
    from brokerfl.common import crypto

    try:
        return crypto.is_signed(_raw(ed25519), data, signature)
    except ConfigError:
        return False


def _raw(key: str) -> bytes:
    return to_bytes(key, 32, "the Ed25519 key")
