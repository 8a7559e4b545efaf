"""Content is verified by hash on arrival: what is not what was sent is an Error, and never a wrong array."""

from collections.abc import Callable, Iterator

import pytest

from brokerfl.broker.connection import Connection
from brokerfl.broker.data import add_data
from brokerfl.broker.nodes import Registration
from brokerfl.broker.outbox import Outgoing, publish
from brokerfl.client import executor, payloads
from brokerfl.common import ErrorCode, Metadata
from brokerfl.server.book.message import MOST_REOPENED
from brokerfl.wire import payload
from brokerfl.wire.frame import MANIFEST
from brokerfl.wire.manifest import Manifest, decode_manifest
from brokerfl.wire.message import encode_message
from brokerfl.wire.payload import Payload
from brokerfl.wire.record import encode_content
from tests.apps import Gate, driving, federation, number, number_in
from tests.conftest import Backend
from tests.stage import CHUNK, Late, layer, layers_in, model, reason_of, to_all, uploader_of

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")


def spoil(backend: Backend, key: str, how: str) -> None:
    """Make something else of a chunk."""
    data = backend.admin.get(key)
    backend.admin.set(key, data[:-1] if how == "shorter" else bytes((data[0] ^ 1,)) + data[1:], keepttl=True)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("shorter", "chunk 3 has 1,023 bytes, but its manifest says 1,024"),
        ("other", "chunk 3 does not have the sha256"),
    ],
)
def test_a_broadcast_chunk_that_is_not_right_is_error_3(backend: Backend, how: str, reason: str) -> None:
    """The node answers with Error 3 and the reason, does not call its ClientApp, and serves what comes next."""
    gate = Gate()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        first, second = driver.push_messages(
            [driver.create_message(content, "train", node, "1") for content in (number(1), model(layer(1)))]
        )
        assert gate.begun.acquire(timeout=10)
        chunks = Payload(encode_content(model(layer(1))), uploader_of(driver)).manifest.chunks
        spoil(backend, driver.connection.keys.blob(driver.run.run_id, chunks[2]), how)
        gate.go.set()
        replies = {reply.metadata.reply_to_message: reply for reply in driver.replies([first, second])}
        assert number_in(replies[first]) == 1
        assert reason in reason_of(replies[second], ErrorCode.MESSAGE_UNAVAILABLE)
        assert gate.calls == 1
        [reply] = to_all(driver, [node], model(layer(2)), "2")
        assert layers_in(reply.content) == [layer(2).tobytes()]


def test_a_chunk_that_is_missing_is_asked_for_once_more(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that does not find a chunk looks again before it gives up, as long as the message is wanted."""
    read_blobs = payloads.read_blobs
    asked: list[list[bytes]] = []

    def blind(connection: Connection, run_id: int, chunks: list[bytes]) -> Iterator[bytes | None]:
        asked.append(chunks)
        found = read_blobs(connection, run_id, chunks)
        return (None for _ in list(found)) if len(asked) == 1 else found

    monkeypatch.setattr(payloads, "read_blobs", blind)
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        [reply] = to_all(driver, [nodes.nodes[0].node_id], model(layer(1)))
        assert layers_in(reply.content) == [layer(1).tobytes()]
    assert asked[0] == asked[1]


def lie(manifest: Manifest, how: str) -> Manifest:
    """A manifest that does not fit its content, made of (description, 2 chunks, 2 chunks)."""
    sizes, digests, entries = manifest.sizes, manifest.digests, manifest.entries
    head, first, second = sizes
    match how:
        case "larger":
            sizes = (head, first, second + 1)
        case "smaller":
            sizes = (head, first - 1, second)
        case "swapped sizes":
            sizes = (head, second, first)
        case "one array for two":
            sizes = (head, first + second)
            count = payload.divide(sizes)[-1].chunks.stop
            digests, entries = digests[:count], entries[:count]
        case "an array more":
            sizes = (*sizes, 10)
            digests, entries = (*digests, digests[0]), (*entries, *entries[:1])
        case "swapped chunks":
            digests = (digests[0], *digests[3:], *digests[1:3])
        case "other hashes":
            digests = (digests[0], *(bytes(32) for _ in digests[1:]))
        case "an entry repeated":
            entries = (*entries[:2], entries[1], *entries[3:])
        case "swapped entries":
            entries = (entries[0], *entries[3:], *entries[1:3])
        case "entries of nobody":
            entries = tuple(f"{index + 1}-0" for index in range(len(entries)))
        case "no entries":
            entries = ()
        case _:
            raise AssertionError(how)
    return Manifest(sizes, digests, entries, manifest.uploader)


#: A content that `lie` lies about.
SIZES = (2 * CHUNK, 2 * CHUNK - 8)

LIES = ["larger", "smaller", "swapped sizes", "one array for two", "an array more"]


@pytest.mark.parametrize("how", [*LIES, "swapped chunks", "other hashes"])
def test_a_manifest_that_lies_is_error_3(backend: Backend, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message whose manifest is not that of its content is Error 3: its ClientApp never sees a wrong array.

    What its run never had is not waited for without end.
    """
    monkeypatch.setattr(executor, "MOST_LACKED", 0)
    late = Late(backend)
    content = model(*(layer(size, size) for size in SIZES))
    with driving(backend) as driver:
        ids = driver.push_messages([driver.create_message(content, "train", late.node_id, "1")])
        inbox = driver.connection.keys.inbox(late.node_id, driver.run.run_id)
        [(entry, fields)] = backend.admin.xrange(inbox)
        lying = lie(decode_manifest(fields[MANIFEST]), how)
        backend.admin.xdel(inbox, entry)
        backend.admin.xadd(inbox, {**fields, MANIFEST: lying.encoded})
        with late.serving():
            [reply] = driver.replies(ids)
            reason_of(reply, ErrorCode.MESSAGE_UNAVAILABLE)
            assert late.seen.contents == []
            [reply] = to_all(driver, [late.node_id], model(layer(9)), "2")
            assert number_in(reply) == 1


@pytest.mark.parametrize(
    "how",
    [
        *LIES,
        "an entry repeated",
        "swapped entries",
        "entries of nobody",
        "no entries",
        "of another node",
        "no manifest",
    ],
)
def test_a_reply_whose_manifest_lies_is_error_4(backend: Backend, how: str) -> None:
    """A node whose manifest is not that of what it sent gets Error 4 for its message, and hurts no other."""
    content = model(*(layer(size, size) for size in SIZES))
    with driving(backend) as driver:
        liar, honest = (Registration(backend.by_hand(), name, lease=600.0) for name in ("liar", "honest"))
        run = driver.run.run_id
        for registration in (liar, honest):
            registration.register()
        ids = driver.push_messages([driver.create_message(number(1), "train", r.node_id, "1") for r in (liar, honest)])

        def entries_in_inbox(node: int) -> tuple[str, ...]:
            inbox = driver.connection.keys.inbox(node, run)
            return tuple(entry.decode() for entry, _ in backend.admin.xrange(inbox)) or ("1-1",)

        def reply(registration: Registration, message_id: str, change: Callable[[Manifest], bytes]) -> None:
            made = Payload(encode_content(content))
            node = registration.node_id
            # The honest node's chunks were there first, so that the liar may name their entries.
            entries = add_data(backend.by_hand(), node, run, [made.chunk(index) for index in range(len(made))])
            assert entries is not None
            header = Metadata(run, "", node, 1, message_id, "1", 60.0, "train")
            manifest = Manifest(made.manifest.sizes, made.manifest.digests, entries)
            fields = {**encode_message(message_id, header), MANIFEST: change(manifest)}
            assert publish(backend.by_hand(), node, [Outgoing(run, entries_in_inbox(node), fields)]) == [True]

        reply(honest, ids[1], lambda manifest: manifest.encoded)
        [good] = driver.replies(ids[1:])
        theirs = [entry.decode() for entry, _ in backend.admin.xrange(driver.connection.keys.data(honest.node_id, run))]

        def lying(manifest: Manifest) -> bytes:
            if how == "no manifest":
                return b"\x01\xc1"
            if how == "of another node":
                return Manifest(manifest.sizes, manifest.digests, tuple(theirs)).encoded
            return lie(manifest, how).encoded

        for _ in range(MOST_REOPENED + 1):  # of entries that are not there the run asks a few times more
            reply(liar, ids[0], lying)
            found = driver.pull_messages(ids[:1])
            if found:
                break
        [bad] = found
        reason_of(bad, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        assert layers_in(good.content) == layers_in(content)
        assert len(theirs) == 5
