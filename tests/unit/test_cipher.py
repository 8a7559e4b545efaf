"""What is sealed opens to what it was, for who has the key and if nobody changed it, and takes no more memory."""

import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerfl.common import FrameError, crypto
from brokerfl.common.crypto import NONCE, exchange_public
from brokerfl.wire.cipher import CLEAR, Sealing
from brokerfl.wire.frame import CONTENT, MANIFEST, SEALED
from brokerfl.wire.manifest import CHUNK
from brokerfl.wire.payload import EncodedContent, Payload, assemble
from brokerfl.wire.record import encode_content
from brokerfl.wire.run_key import new_key, sealing_contents, sealing_replies, unwrapped, wrapped
from tests.stage import layer, model

KEY = bytes(range(32))
CIPHER = Sealing(KEY, b"contents")


@given(st.binary(max_size=5000), st.binary(min_size=32, max_size=32), st.binary(max_size=9))
def test_what_is_sealed_opens_to_what_it_was(plain: bytes, key: bytes, purpose: bytes) -> None:
    """Under the key and for the purpose with which it was sealed; and equal texts are equal when they are sealed."""
    sealed = bytes(Sealing(key, purpose).seal(plain))
    assert Sealing(key, purpose).open(sealed) == plain
    assert sealed == bytes(Sealing(key, purpose).seal(memoryview(bytearray(plain))))
    assert len(sealed) == len(plain) + CIPHER.overhead
    with pytest.raises(FrameError):
        Sealing(key, purpose + b"x").open(sealed)


@given(st.lists(st.binary(max_size=40), unique=True, max_size=20))
def test_no_two_texts_share_a_nonce(texts: list[bytes]) -> None:
    """Nor do two keys make the same one of a text."""
    ciphers = CIPHER, Sealing(KEY, b"other"), Sealing(bytes(32), b"contents")
    nonces = [bytes(cipher.seal(text)[:NONCE]) for cipher in ciphers for text in texts]
    assert len(set(nonces)) == len(nonces)


@given(st.binary(max_size=300), st.data())
def test_a_changed_byte_is_noticed(plain: bytes, data: st.DataObject) -> None:
    """So is one that is missing, or one more."""
    sealed = bytearray(CIPHER.seal(plain))
    at, bits = data.draw(st.integers(0, len(sealed) - 1)), data.draw(st.integers(1, 255))
    for other in (sealed[:at], sealed + b"x", sealed[:at] + bytes([sealed[at] ^ bits]) + sealed[at + 1 :]):
        with pytest.raises(FrameError):
            CIPHER.open(bytes(other))


@given(st.binary(max_size=500))
def test_whatever_is_not_sealed_is_refused(junk: bytes) -> None:
    """And what has the right key is fields, or refused."""
    with pytest.raises(FrameError):
        CIPHER.opened({SEALED: junk, b"i": b"1"})
    with suppress(FrameError):
        fields = CIPHER.opened({SEALED: bytes(CIPHER.seal(junk)), b"i": b"1"})
        assert all(type(item) is bytes for pair in fields.items() for item in pair)


@pytest.mark.parametrize(
    "junk", [b"", b"\xc0", b"\x90", b"\x81\xa1a\xc4\x01b", b"\x81\xc4\x01c\x05", b"\xde\xff\xff", b"\x80\x80"]
)
def test_what_is_sealed_and_no_content_is_refused(junk: bytes) -> None:
    """Nothing, no map, a map with text or numbers, one that ends early, and two."""
    with pytest.raises(FrameError, match="no content"):
        CIPHER.opened({SEALED: bytes(CIPHER.seal(junk))})


def test_what_changes_while_it_is_sealed_is_sealed_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two texts would share a nonce, and both be known: an app may change an array at any time."""
    array, authenticate = bytearray(b"before"), crypto.authenticate

    def change(key: bytes, data: bytes) -> bytes:
        array[:] = b"after!"
        return authenticate(key, data)

    monkeypatch.setattr(crypto, "authenticate", change)
    sealed = CIPHER.seal(memoryview(array))
    assert (CIPHER.open(sealed), bytes(array)) == (b"before", b"after!")


@given(st.lists(st.integers(0, 4000), max_size=5), st.booleans())
def test_a_content_travels_sealed(sizes: list[int], large: bool) -> None:
    """In its message or in chunks, whose names are not those that they have in clear."""
    content = encode_content(model(*(layer(size, size) for size in sizes)))
    whole = {name: bytes(data) for name, data in content.items()}
    if not large:
        fields = CIPHER.inline(content)
        assert fields.keys() == {SEALED}
        assert CIPHER.opened(fields) == whole
        return
    payload, clear = Payload(content, cipher=CIPHER), Payload(content)
    assert set(payload.manifest.digests).isdisjoint(clear.manifest.digests)
    chunks = [bytes(payload.chunk(index)) for index in range(len(payload))]
    assert [len(chunk) for chunk in chunks] == [payload.size(index) for index in range(len(payload))]
    found, _ = assemble(payload.manifest, lambda window: [chunks[index] for index in window], cipher=CIPHER)
    assert {name: bytes(data) for name, data in found.items()} == whole
    with pytest.raises(FrameError):
        assemble(payload.manifest, lambda window: [chunks[index] for index in window], cipher=Sealing(KEY, b"other"))


def test_swapped_chunks_are_noticed() -> None:
    """Both are of the run's key, but not where the manifest says."""
    payload = Payload(encode_content(model(layer(1, 3 * CHUNK))), cipher=CIPHER)
    chunks = [bytes(payload.chunk(index)) for index in range(len(payload))]
    chunks[1], chunks[2] = chunks[2], chunks[1]
    with pytest.raises(FrameError, match="chunk 2 does not have the sha256"):
        assemble(payload.manifest, lambda window: [chunks[index] for index in window], cipher=CIPHER)


def test_a_content_in_clear_is_not_taken_for_a_sealed_one() -> None:
    """And a sealed one is not read without a key."""
    with pytest.raises(FrameError, match="in clear"):
        CIPHER.opened({CONTENT: b"x"})
    with pytest.raises(FrameError, match="sealed"):
        CLEAR.opened({SEALED: b"x"})


def test_what_is_not_sealed_is_as_it_was() -> None:
    """The bytes of a message and of its chunks."""
    small, large = encode_content(model(layer(1, 10))), encode_content(model(layer(1, 2 * CHUNK)))
    assert EncodedContent(small).fields == {name: bytes(data) for name, data in small.items()}
    payload = Payload(large)
    assert payload.chunk(1).obj is payload.chunk(2).obj  # of the content itself
    assert EncodedContent(large).fields == {MANIFEST: payload.manifest.encoded}


@pytest.mark.parametrize("large", [True, False])
def test_whoever_guesses_a_content_cannot_check_the_guess(large: bool) -> None:
    """What it and its chunks are called depends on the run's key, not only on what is in it."""
    content = encode_content(model(layer(1, 3 * CHUNK if large else 5)))
    ciphers = CLEAR, CIPHER, Sealing(bytes(32), b"the same content in another run")
    made = [EncodedContent(content, cipher=cipher) for cipher in ciphers]
    assert len({each.name for each in made}) == 3
    names = [set(each.payload.manifest.chunks) if each.payload else {each.name} for each in made]
    assert len(set.union(*names)) == sum(map(len, names))


def test_a_model_is_sealed_chunk_by_chunk() -> None:
    """Sealing and opening take the memory of some chunks besides the model, not that of another model."""
    content = encode_content(model(layer(1, 24 * CHUNK)))
    stored: dict[int, bytes] = {}
    tracemalloc.start()
    try:
        payload = Payload(content, cipher=CIPHER)
        manifest = payload.manifest
        for index in range(len(payload)):
            assert len(payload.chunk(index)) == payload.size(index)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * CHUNK
    stored = {index: bytes(payload.chunk(index)) for index in range(len(payload))}
    tracemalloc.start()
    try:
        assemble(manifest, lambda window: [stored[index] for index in window], cipher=CIPHER)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (24 + 6) * CHUNK


@given(st.binary(min_size=1, max_size=64))
def test_a_wrapped_key_is_for_one_reader_of_one_run(key: bytes) -> None:
    """Of this data set; and who reads Redis cannot tell two wrapped keys from one another."""
    private, other = new_key(), new_key()
    made = wrapped(key, exchange_public(private), b"id", 7)
    assert unwrapped(made, private, b"id", 7) == key
    assert made != wrapped(key, exchange_public(private), b"id", 7)
    for reader, data_set, run_id in ((other, b"id", 7), (private, b"other", 7), (private, b"id", 8)):
        with pytest.raises(FrameError, match="cannot be unwrapped"):
            unwrapped(made, reader, data_set, run_id)
    with pytest.raises(FrameError, match="cannot be unwrapped"):
        unwrapped(bytes(len(made)), private, b"id", 7)


def test_a_node_reads_no_reply_of_another() -> None:
    """Although both have the run key, and know all public keys."""
    run_key, owner, one, other = (new_key() for _ in range(4))
    theirs = sealing_replies(run_key, one, exchange_public(owner), b"id", 7, 1)
    sealed = theirs.seal(b"reply")
    owners = sealing_replies(run_key, owner, exchange_public(one), b"id", 7, 1)
    assert owners.open(sealed) == b"reply"
    for cipher in (
        sealing_contents(run_key),
        sealing_replies(run_key, other, exchange_public(owner), b"id", 7, 1),
        sealing_replies(run_key, other, exchange_public(one), b"id", 7, 1),
        sealing_replies(run_key, owner, exchange_public(one), b"id", 7, 2),
        sealing_replies(run_key, owner, exchange_public(one), b"id", 8, 1),
        sealing_replies(new_key(), owner, exchange_public(one), b"id", 7, 1),
    ):
        with pytest.raises(FrameError):
            cipher.open(sealed)


def test_a_key_that_is_none_is_refused() -> None:
    """With it, any two parties would have the same secret (RFC 7748, section 6.1)."""
    with pytest.raises(FrameError, match="is none"):
        sealing_replies(new_key(), new_key(), bytes(32), b"id", 7, 1)
