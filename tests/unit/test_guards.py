"""The guards: whatever is changed in a signed run, message, reply or state is not trusted."""

import time
from dataclasses import replace
from typing import Any

import pytest

from brokerfl.common import SUPERLINK_NODE_ID, Error, FrameError, Metadata
from brokerfl.common.identity import Identity, Owner, Trusted
from brokerfl.wire.cipher import CLEAR
from brokerfl.wire.frame import HEAD, ID, SEALED, SIGNATURE, Fields
from brokerfl.wire.guard import UNPROTECTED, NodeGuard, RunGuard
from brokerfl.wire.message import decode_header, encode_message, new_message_id
from brokerfl.wire.node_guard import MOST_SKEW
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.protection import Protected
from brokerfl.wire.record import decode_content, encode_content
from brokerfl.wire.run import LedgerEntry, Run, decode_run, encode_run
from brokerfl.wire.run_key import new_key, sealing_state, unwrapped, wrapped
from brokerfl.wire.signing import DistrustError
from tests.apps import text
from tests.parties import new_identity, public_of

DATA_SET, RUN = b"0123", 2**63 + 5
CONFIG = {"lr": 0.125, "prompt": "canary"}


class Pair:
    """An owner and a node, and a run that the node has read."""

    def __init__(self, *, seals: bool) -> None:
        self.seals = seals
        self.lab, self.site = new_identity("lab"), new_identity("site")
        self.members = {5: public_of(self.site), 6: public_of(new_identity("other"))}
        self.owner = Protected(self.lab, Trusted(nodes=self.members), seals=seals)
        self.run = Run(RUN, "server:app", CONFIG, 1.5, overrides=("lr",), name="first")
        self.guard: RunGuard = self.owner.for_new(DATA_SET, RUN)
        self.node = self.new_node(5)
        self.node.run(RUN, self.frame)

    def new_node(self, node_id: int, identity: Identity | None = None, **trusted: Any) -> NodeGuard:
        trusted = trusted or {"owners": {"lab": Owner("lab", public_of(self.lab).signing)}}
        node = Protected(identity or self.site, Trusted(**trusted), seals=self.seals).for_node(node_id)
        node.data_set = DATA_SET
        return node

    @property
    def frame(self) -> bytes:
        return self.guard.frames(self.run)(5)

    def message(self, **changed: Any) -> tuple[str, Fields]:
        """A message of the run to the node."""
        message_id = changed.pop("message_id", None) or new_message_id(RUN)
        meta = {"run_id": RUN, "message_id": "", "src_node_id": SUPERLINK_NODE_ID, "dst_node_id": 5}
        meta |= {"reply_to_message": "", "group_id": "1", "ttl": 60.0, "message_type": "train", **changed}
        content = EncodedContent(encode_content(text(a="canary")), cipher=self.guard.contents).fields
        return message_id, self.guard.encode(message_id, Metadata(**meta), content)

    def check(self, message_id: str, fields: Fields) -> None:
        self.node.check(RUN, message_id, decode_header(fields)[0], fields)

    def reply(self, message_id: str, error: Error | None = None, node: NodeGuard | None = None) -> Fields:
        """A reply of the node."""
        node = node or self.node
        meta = Metadata(RUN, "", 5, SUPERLINK_NODE_ID, message_id, "1", 0.0, "train")
        content = {} if error else EncodedContent(encode_content(text(b="canary")), cipher=node.replies(RUN)).fields
        return node.protected(RUN, message_id, {**encode_message(message_id, meta, error=error), **content})

    def open(self, message_id: str, fields: Fields, node_id: int = 5) -> Fields:
        return self.guard.opened(node_id, message_id, LedgerEntry(node_id, "1", "train", 0), fields)


@pytest.fixture(params=[False, True], ids=["signed", "sealed"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(seals=request.param)


def flipped(data: bytes | memoryview, at: int) -> bytes:
    """The bytes with one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def each_byte(fields: Fields, but: set[bytes]) -> list[Fields]:
    """The fields with one of their bytes changed: each in turn, or some of many."""
    return [
        {**fields, name: flipped(data, at)}
        for name, data in fields.items()
        if name not in but
        for at in range(0, len(data), max(1, len(data) // 40))
    ]


def test_what_is_as_it_was_signed_is_read(pair: Pair) -> None:
    """The run with its config, a message, a reply, and an Error with its reason."""
    assert replace(pair.node.run(RUN, pair.frame), proof=None) == pair.run
    assert pair.node.owner_of(RUN) == Owner("lab", public_of(pair.lab).signing)
    message_id, fields = pair.message()
    pair.check(message_id, fields)
    assert decode_content(pair.node.contents(RUN).opened(fields)) == text(a="canary")
    assert decode_content(pair.open(message_id, pair.reply(message_id))) == text(b="canary")
    error = Error(2, "ValueError: canary")
    assert decode_header(pair.open(message_id, pair.reply(message_id, error)))[1] == error


def test_a_sealed_run_shows_nothing() -> None:
    """Neither its config nor contents nor reasons, to who has no key; ids, sizes, groups and types are in clear."""
    pair = Pair(seals=True)
    message_id, message = pair.message()
    replies = pair.reply(message_id), pair.reply(message_id, Error(2, "canary"))
    shown = [pair.frame, pair.guard.frame(pair.run), *(data for each in (message, *replies) for data in each.values())]
    assert not [data for data in shown if b"canary" in bytes(data) or b"prompt" in bytes(data)]
    seen = decode_run(RUN, pair.frame)
    assert (seen.is_sealed, seen.run_config, seen.overrides, seen.app, seen.name) == (
        True,
        {},
        None,
        "server:app",
        "first",
    )
    assert decode_header(message)[0].group_id == "1"
    assert message.keys() == {ID, HEAD, SEALED, SIGNATURE}


def test_a_changed_byte_of_a_frame_is_not_trusted(pair: Pair) -> None:
    """Wherever it is: also in the key for the node."""
    for at in range(len(pair.frame)):
        node = pair.new_node(5)
        with pytest.raises(FrameError):
            node.run(RUN, flipped(pair.frame, at))
        with pytest.raises(DistrustError, match="does not trust its run"):
            node.check(RUN, *_first(pair.message()))


def _first(message: tuple[str, Fields]) -> tuple[str, Metadata, Fields]:
    message_id, fields = message
    return message_id, decode_header(fields)[0], fields


def test_a_changed_byte_of_a_message_is_not_trusted(pair: Pair) -> None:
    """Of header, content or signature; its id says which message it is, and is signed, too."""
    message_id, fields = pair.message()
    for changed in each_byte(fields, {ID}):
        with pytest.raises(FrameError):
            pair.check(message_id, changed)
    with pytest.raises(DistrustError, match="signature"):
        pair.check(new_message_id(RUN), fields)
    for name in fields.keys() - {ID}:
        with pytest.raises(FrameError):
            pair.check(message_id, {each: data for each, data in fields.items() if each != name})
    with pytest.raises(DistrustError, match="signature"):
        pair.check(message_id, {**fields, b"0": b"one more"})


def test_a_changed_byte_of_a_reply_is_not_trusted(pair: Pair) -> None:
    """Nor of an Error."""
    message_id, _ = pair.message()
    for reply in (pair.reply(message_id), pair.reply(message_id, Error(2, "why"))):
        for changed in each_byte(reply, {ID}):
            with pytest.raises(FrameError):
                pair.open(message_id, changed)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"dst_node_id": 6}, "another node"),
        ({"src_node_id": 6}, "another node"),
        ({"run_id": RUN + 1}, "another run"),
        ({"reply_to_message": "x"}, "another"),
        ({"message_id": "00" * 16}, "its id is not one of its run"),
        ({"created_at": time.time() - 3 * MOST_SKEW}, "by this node's clock it was made"),
        ({"created_at": time.time() + 3 * MOST_SKEW}, "by this node's clock it was made"),
    ],
)
def test_a_message_that_is_not_for_now_and_here_is_not_trusted(pair: Pair, how: dict[str, Any], reason: str) -> None:
    """Although the run's owner signed it."""
    with pytest.raises(DistrustError, match=reason):
        pair.check(*pair.message(**how))


def test_clocks_may_differ_a_little(pair: Pair) -> None:
    """By less than `MOST_SKEW`, beyond the ttl."""
    for age in (0.9 * MOST_SKEW + 60.0, -0.9 * MOST_SKEW):
        pair.check(*pair.message(created_at=time.time() - age))


def test_a_node_trusts_only_owners_it_knows(pair: Pair) -> None:
    """In the data set where the run was created, and with the key that was wrapped for it."""
    node = pair.new_node(5, owners={"other": Owner("other", public_of(new_identity("other")).signing)})
    with pytest.raises(DistrustError, match="does not trust the owner"):
        node.run(RUN, pair.frame)
    node = pair.new_node(5)
    node.data_set = b"another"
    with pytest.raises(DistrustError, match="signature"):
        node.run(RUN, pair.frame)
    with pytest.raises(DistrustError, match="signature"):
        pair.new_node(5).run(RUN + 1, pair.frame)
    with pytest.raises(DistrustError, match="not signed"):
        pair.new_node(5).run(RUN, RunGuard().frame(pair.run))


def test_an_owner_that_is_no_longer_trusted_is_refused(pair: Pair) -> None:
    """From the next message on."""
    owners = {"lab": Owner("lab", public_of(pair.lab).signing)}
    node = pair.new_node(5, owners=owners)
    node.run(RUN, pair.frame)
    message = _first(pair.message())
    node.check(RUN, *message)
    owners.clear()
    with pytest.raises(DistrustError, match="does not trust"):
        node.check(RUN, *message)


def test_owners_have_only_the_runs_of_their_realm(pair: Pair) -> None:
    """Else one owner could take the run of another, and get the state that a node keeps for it."""
    realm, key = str(RUN)[:4], public_of(pair.lab).signing
    pair.new_node(5, owners={"lab": Owner("lab", key, realm)}).run(RUN, pair.frame)
    for other in (realm[:3] + "0", str(RUN)[1:5]):
        with pytest.raises(DistrustError, match="is not one of lab"):
            pair.new_node(5, owners={"lab": Owner("lab", key, other)}).run(RUN, pair.frame)


def test_a_sealed_run_is_only_for_its_nodes() -> None:
    """A node without its key says so; one that serves only sealed runs refuses others."""
    pair, signed = Pair(seals=True), Pair(seals=False)
    with pytest.raises(FrameError, match="has no key for this node"):
        pair.new_node(7).run(RUN, pair.guard.frames(pair.run)(7))
    with pytest.raises(FrameError, match="cannot be unwrapped"):
        pair.new_node(5, new_identity("site")).run(RUN, pair.frame)
    with pytest.raises(FrameError, match="has no keys: start it with --credentials"):
        NodeGuard().run(RUN, pair.frame)
    node = Protected(
        signed.site, Trusted(owners={"lab": Owner("lab", public_of(signed.lab).signing)}), seals=True
    ).for_node(5)
    node.data_set = DATA_SET
    with pytest.raises(DistrustError, match="serves only sealed ones"):
        node.run(RUN, signed.frame)


def test_a_node_takes_no_key_but_the_one_that_its_owner_signed() -> None:
    """Who writes to Redis can wrap a key for it, but not sign that it is the run's."""
    pair = Pair(seals=True)
    run = decode_run(RUN, pair.frame)
    assert run.proof is not None
    other = wrapped(new_key(), public_of(pair.site).exchange, DATA_SET, RUN)
    with pytest.raises(DistrustError, match="another one than its owner signed"):
        pair.new_node(5).run(RUN, encode_run(replace(run, proof=replace(run.proof, wrapped=other))))


def test_nodes_of_a_run_read_no_replies_of_one_another() -> None:
    """Neither a content nor the reason of an Error, although both are nodes of the run."""
    pair = Pair(seals=True)
    identity = new_identity("other")
    pair.members[6] = public_of(identity)
    other = pair.new_node(6, identity)
    other.run(RUN, pair.guard.frames(pair.run)(6))
    message_id, message = pair.message()
    assert decode_content(other.contents(RUN).opened(message)) == text(a="canary")  # a broadcast is for all
    for reply in (pair.reply(message_id), pair.reply(message_id, Error(2, "canary"))):
        for cipher in (other.contents(RUN), other.replies(RUN)):
            with pytest.raises(FrameError, match="cannot be opened"):
                cipher.open(reply[SEALED])


def test_replies_are_of_who_may_give_them(pair: Pair) -> None:
    """Of the node, to this message, in this run; and of a member."""
    first, second = (pair.message()[0] for _ in range(2))
    reply = pair.reply(first)
    with pytest.raises(DistrustError, match="another message"):
        pair.open(second, reply)
    with pytest.raises(DistrustError, match="another message"):
        pair.open(second, {**reply, ID: second.encode()})
    with pytest.raises(DistrustError, match="another message"):
        pair.open(first, reply, node_id=6)
    with pytest.raises(DistrustError, match="not signed"):
        pair.open(first, pair.reply(first, node=NodeGuard()))
    other = pair.new_node(5, new_identity("thief"))
    with pytest.raises(DistrustError, match="signature"):
        pair.open(first, pair.reply(first, node=other))
    with pytest.raises(DistrustError, match="another group"):
        pair.guard.opened(5, first, LedgerEntry(5, "2", "train", 0), reply)
    del pair.members[5]
    with pytest.raises(DistrustError, match="not among the members"):
        pair.open(first, reply)


def test_a_node_that_cannot_read_a_run_may_say_so(pair: Pair) -> None:
    """Its Error is signed, and in clear; a content in clear is refused."""
    message_id, _ = pair.message()
    node = pair.new_node(5)  # which has not read the run
    assert node.replies(RUN) is CLEAR
    told = decode_header(pair.open(message_id, pair.reply(message_id, Error(3, "no key"), node)))[1]
    assert told == Error(3, "no key")
    if pair.seals:
        with pytest.raises(FrameError, match="in clear"):
            pair.open(message_id, pair.reply(message_id, node=node))


def test_a_run_is_resumed_by_its_owner_alone(pair: Pair) -> None:
    """With its config and its keys; and not if its frame was changed."""
    frame = pair.guard.frame(pair.run)
    guard, run = pair.owner.for_old(DATA_SET, decode_run(RUN, frame))
    assert run == pair.run
    assert guard.is_sealed == pair.seals
    message_id, _ = pair.message()
    reply = guard.opened(5, message_id, LedgerEntry(5, "1", "train", 0), pair.reply(message_id))
    assert decode_content(reply) == text(b="canary")
    state = EncodedContent(encode_content(text(s="x")), cipher=pair.guard.state).fields
    assert decode_content(guard.state.opened(state)) == text(s="x")
    thief = Protected(new_identity("lab"), Trusted())
    for protection, reason in ((thief, "belongs to another owner"), (UNPROTECTED, "is (sealed|signed)")):
        with pytest.raises(FrameError, match=reason):
            protection.for_old(DATA_SET, decode_run(RUN, frame))
    with pytest.raises(DistrustError, match="is not signed"):
        pair.owner.for_old(DATA_SET, pair.run)
    with pytest.raises(FrameError):
        pair.owner.for_old(b"another", decode_run(RUN, frame))
    for at in range(len(frame)):
        with pytest.raises(FrameError):
            pair.owner.for_old(DATA_SET, decode_run(RUN, flipped(frame, at)))


def test_a_changed_byte_of_a_state_is_not_trusted(pair: Pair) -> None:
    """Nor is the state of another run."""
    state = pair.guard.written(EncodedContent(encode_content(text(s="canary")), cipher=pair.guard.state).fields)
    pair.guard.check_state(state)
    for changed in each_byte(state, set()):
        with pytest.raises(DistrustError):
            pair.guard.check_state(changed)
    with pytest.raises(DistrustError):
        pair.owner.for_new(DATA_SET, RUN + 1).check_state(state)


def test_nodes_cannot_read_the_state() -> None:
    """Although they have the run's key."""
    pair = Pair(seals=True)
    state = EncodedContent(encode_content(text(s="canary")), cipher=pair.guard.state).fields
    assert b"canary" not in b"".join(map(bytes, state.values()))
    run = decode_run(RUN, pair.frame)
    assert run.proof is not None
    run_key = unwrapped(run.proof.wrapped, pair.site.exchange, DATA_SET, RUN)
    for cipher in (pair.node.contents(RUN), pair.node.replies(RUN), sealing_state(run_key)):
        with pytest.raises(FrameError):
            cipher.opened(state)


def test_what_is_neither_signed_nor_sealed_has_the_same_bytes() -> None:
    """Nothing becomes larger."""
    run = Run(RUN, "server:app", CONFIG, 1.5)
    meta = Metadata(RUN, "", SUPERLINK_NODE_ID, 5, "", "1", 60.0, "train")
    content = EncodedContent(encode_content(text(a="x"))).fields
    guard, node = UNPROTECTED.for_new(b"", RUN), UNPROTECTED.for_node(5)
    assert guard.frames(run)(5) == guard.frame(run)
    assert decode_run(RUN, guard.frame(run)) == run == node.run(RUN, guard.frame(run))
    assert guard.encode("m", meta, content) == encode_message("m", meta, content)
    reply = encode_message("m", meta, content)
    assert node.protected(RUN, "m", reply) is reply
    assert guard.written(content) is content


def test_no_two_fields_are_signed_as_one(pair: Pair) -> None:
    """Whoever hides a field in the name of another one changes what was signed."""
    fields: Fields = {b"a": b"1", b"b": b"2"}
    state = pair.guard.written(fields)
    pair.guard.check_state(state)
    for hidden in (b"a 1 1b", b"1 1 a11 b", b"1 1 a11 1 b"):
        with pytest.raises(DistrustError):
            pair.guard.check_state({hidden: b"2", SIGNATURE: state[SIGNATURE]})
