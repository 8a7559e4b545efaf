"""The key pairs of one party: Ed25519 to sign, X25519 to agree on keys for seals.

Owns how they are made, written as text, and used to sign. It must not know what is signed, or where they are kept.
The package cryptography, of the extra ``secure``, is imported only here and where it is used.
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
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        signing, sealing = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
        return cls.of(to_text(signing.private_bytes_raw()), to_text(sealing.private_bytes_raw()))

    @classmethod
    def of(cls, signing: str, sealing: str) -> "KeyPairs":
        """Return those with these private keys.

        Raises:
            ConfigError: they are none.
            MissingExtra: cryptography is not installed.
        """
        check_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        ed25519 = Ed25519PrivateKey.from_private_bytes(to_bytes(signing, 32, "the Ed25519 key")).public_key()
        x25519 = X25519PrivateKey.from_private_bytes(to_bytes(sealing, 32, "the X25519 key")).public_key()
        return cls(signing, sealing, to_text(ed25519.public_bytes_raw()), to_text(x25519.public_bytes_raw()))

    def sign(self, data: bytes) -> bytes:
        """Return the signature of ``data``, 64 bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(to_bytes(self.signing, 32, "the Ed25519 key")).sign(data)


def is_signed(ed25519: str, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` is that of ``data`` by the owner of this public key, 32 bytes in base64.

    Raises:
        MissingExtra: cryptography is not installed.
    """
    check_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(to_bytes(ed25519, 32, "the Ed25519 key")).verify(signature, data)
    except (InvalidSignature, ConfigError):
        return False
    return True
