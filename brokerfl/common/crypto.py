"""Cryptography: signatures, key agreement, key derivation and authenticated encryption, as functions of bytes.

Owns which constructions are used, and is the only module that imports them; certificates are made by `cli/certs.py`. It
must not know what is signed or sealed. Only what was asked to sign or seal imports it: it needs the extra ``secure``.

    sign, is_signed    Ed25519 (RFC 8032)
    agree              X25519 (RFC 7748)
    derive             HKDF-SHA256 (RFC 5869)
    authenticate       HMAC-SHA256 (RFC 2104)
    encrypt, decrypt   AES-256-GCM (NIST SP 800-38D)
    digest             SHA-256 (FIPS 180-4)
"""

import hmac
from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Bytes = bytes | memoryview

#: Bytes of a key of AES-256, of a nonce and of a tag.
KEY, NONCE, TAG = 32, 12, 16

#: Most keys that are kept ready for use: making one takes as long as a signature.
_READY = 1024


class CannotOpen(Exception):  # noqa: N818  (it says what is so)
    """What was encrypted was changed, or is of another key."""


# Signatures.


@lru_cache(_READY)
def _signer(private: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(private)


@lru_cache(_READY)
def _verifier(public: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public)


def new_signing() -> bytes:
    """Return a new private Ed25519 key."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def sign(private: bytes, data: bytes) -> bytes:
    """Return the signature of ``data``, 64 bytes."""
    return _signer(private).sign(data)


def is_signed(public: bytes, data: bytes, signature: Bytes) -> bool:
    """Return whether the owner of a public key signed ``data``."""
    try:
        _verifier(public).verify(bytes(signature), data)
    except (InvalidSignature, ValueError):  # a key that is none
        return False
    return True


def signing_public(private: bytes) -> bytes:
    """Return the public Ed25519 key of a private one."""
    return _signer(private).public_key().public_bytes_raw()


# Keys.


def new_exchange() -> tuple[bytes, bytes]:
    """Return a new X25519 key, private and public."""
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def exchange_public(private: bytes) -> bytes:
    """Return the public X25519 key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Return the secret that two parties share.

    Raises:
        CannotOpen: the public key is none, or one with which any secret is the same.
    """
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise CannotOpen("not a public key") from None


def derive(secret: bytes, info: bytes, salt: bytes = b"") -> bytes:
    """Return a key of 32 bytes for one purpose."""
    return HKDF(SHA256(), KEY, salt or None, info).derive(secret)


def digest(data: bytes) -> bytes:
    """Return the sha256 of ``data``."""
    return sha256(data).digest()


def authenticate(key: bytes, data: bytes) -> bytes:
    """Return the HMAC-SHA256 of ``data``, 32 bytes."""
    return hmac.digest(key, data, "sha256")


# Encryption.


def encrypt(key: bytes, nonce: bytes, plain: Bytes) -> bytes:
    """Return what is encrypted, and its tag. A nonce must never be used for two texts under one key."""
    return AESGCM(key).encrypt(nonce, plain, None)


def decrypt(key: bytes, nonce: Bytes, sealed: Bytes) -> bytes:
    """Return what `encrypt` encrypted.

    Raises:
        CannotOpen: it was changed, or is of another key.
    """
    try:
        return AESGCM(key).decrypt(bytes(nonce), sealed, None)
    except (InvalidTag, ValueError):
        raise CannotOpen("changed, or of another key") from None
