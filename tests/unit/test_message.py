"""Message: content or error, what a reply inherits, and message types."""

import logging
import time

import pytest

from brokerfl.common import (
    DEFAULT_TTL,
    MESSAGE_TTL_TOLERANCE,
    Array,
    BrokerflError,
    Error,
    ErrorCode,
    FrameError,
    Message,
    MessageTooLarge,
    MessageType,
    Metadata,
    MetricsRecord,
    ParametersRecord,
    RecordSet,
    RedisError,
    RunError,
    is_message_type,
    split_message_type,
)
from brokerfl.common import errors as errors_module


def metadata(ttl: float = DEFAULT_TTL, created_at: float | None = None) -> Metadata:
    return Metadata(
        run_id=7,
        message_id="m1",
        src_node_id=1,
        dst_node_id=22,
        reply_to_message="",
        group_id="g3",
        ttl=ttl,
        message_type="train.warmup",
        created_at=time.time() if created_at is None else created_at,
    )


def test_metadata_is_stamped() -> None:
    """Metadata are stamped with the time of their creation when none is given."""
    before = time.time()
    made = Metadata(7, "m1", 1, 22, "", "g3", 60.0, "train")
    assert before <= made.created_at <= time.time()


def test_message_keeps_created_at() -> None:
    """Unlike in Flower, wrapping metadata in a Message does not stamp them again."""
    meta = metadata(created_at=123.0)
    assert Message(meta, RecordSet()).metadata is meta
    assert meta.created_at == 123.0


def test_either_content_or_error() -> None:
    """A message has content or an error; both or neither is a ValueError."""
    with pytest.raises(ValueError, match="either content or error"):
        Message(metadata())
    with pytest.raises(ValueError, match="either content or error"):
        Message(metadata(), RecordSet(), Error(0))


@pytest.mark.parametrize("bad", [{}, 5, "text", MetricsRecord()])
def test_content_is_a_record_set(bad: object) -> None:
    """Something else than a RecordSet as content, or than an Error as error, is a TypeError that names it."""
    with pytest.raises(TypeError, match=f"expected RecordSet, not {type(bad).__name__}"):
        Message(metadata(), bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected RecordSet, not"):
        Message(metadata(), RecordSet()).create_reply(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"expected Error, not {type(bad).__name__}"):
        Message(metadata(), error=bad)  # type: ignore[arg-type]


def test_message_with_content() -> None:
    """A message with content gives it, lets it be replaced, and has no error."""
    message = Message(metadata(), RecordSet())
    assert message.has_content()
    assert not message.has_error()
    with pytest.raises(ValueError, match="has_error"):
        _ = message.error
    with pytest.raises(ValueError, match="cannot have an error"):
        message.error = Error(0)
    other = RecordSet()
    message.content = other
    assert message.content is other
    with pytest.raises(TypeError):
        message.content = {}  # type: ignore[assignment]


def test_message_with_error() -> None:
    """A message with an error gives it, lets it be replaced, and has no content."""
    message = Message(metadata(), error=Error(2, "boom"))
    assert message.has_error()
    assert not message.has_content()
    with pytest.raises(ValueError, match=r"boom.*has_content"):
        _ = message.content
    with pytest.raises(ValueError, match="cannot have content"):
        message.content = RecordSet()
    message.error = Error(5)
    assert message.error.code == ErrorCode.NODE_UNAVAILABLE
    with pytest.raises(TypeError):
        message.error = "text"  # type: ignore[assignment]


@pytest.mark.parametrize("with_error", [False, True])
def test_reply_metadata(with_error: bool) -> None:
    """A reply goes back where the message came from, in its run, group and type, and names it."""
    message = Message(metadata(), RecordSet())
    content, error = RecordSet(), Error(2, "boom")
    reply = message.create_error_reply(error) if with_error else message.create_reply(content)
    assert (reply.error is error) if with_error else (reply.content is content)
    meta = reply.metadata
    assert (meta.src_node_id, meta.dst_node_id) == (22, 1)
    assert (meta.message_id, meta.reply_to_message) == ("", "m1")
    assert (meta.run_id, meta.group_id, meta.message_type) == (7, "g3", "train.warmup")
    assert meta is not message.metadata


@pytest.mark.parametrize("with_error", [False, True])
@pytest.mark.parametrize(
    ("ttl", "expected", "warned"),
    [
        (None, 60.0, False),
        (10.0, 10.0, False),
        (0.0, 0.0, False),
        (-5.0, 0.0, False),
        (60.0 + MESSAGE_TTL_TOLERANCE, 60.1, False),
        (60.0 + MESSAGE_TTL_TOLERANCE + 0.001, 60.0, True),
        (DEFAULT_TTL, 60.0, True),
    ],
)
def test_reply_ttl(
    ttl: float | None,
    expected: float,
    warned: bool,
    with_error: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A reply lives as long as its message at most, give or take 0.1 s; a longer ttl is cut, with a warning."""
    monkeypatch.setattr(time, "time", lambda: 1040.0)
    message = Message(metadata(ttl=100.0, created_at=1000.0), RecordSet())
    reply = message.create_error_reply(Error(0), ttl) if with_error else message.create_reply(RecordSet(), ttl)
    assert reply.metadata.ttl == pytest.approx(expected, abs=1e-9)
    assert reply.metadata.created_at == 1040.0
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warned


@pytest.mark.parametrize("ttl", [None, 50.0])
def test_reply_to_an_expired_message(
    ttl: float | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reply to a message that has expired has a ttl of zero, never less, also in the warning's words."""
    monkeypatch.setattr(time, "time", lambda: 2000.0)
    message = Message(metadata(ttl=100.0, created_at=1000.0), RecordSet())
    assert message.create_reply(RecordSet(), ttl).metadata.ttl == 0.0
    assert ("cut to the 0.00 s left" in caplog.text) == (ttl is not None)


def test_default_ttl() -> None:
    """A message lives 12 hours by default."""
    assert DEFAULT_TTL == 12 * 3600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", ("train", "default")),
        ("evaluate", ("evaluate", "default")),
        ("query", ("query", "default")),
        ("train.warmup", ("train", "warmup")),
        ("query._2", ("query", "_2")),
    ],
)
def test_message_types(text: str, expected: tuple[str, str]) -> None:
    """A message type is a category, or a category and an action that is an identifier."""
    assert is_message_type(text)
    assert split_message_type(text) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "begin with"),
        ("Train", "begin with"),
        ("training", "begin with"),
        (".warmup", "begin with"),
        ("fit.train", "begin with"),
        (None, "None"),
        ("train.", "action ''"),
        ("train.2", "action '2'"),
        ("train.a.b", "action 'a.b'"),
        ("train.a b", "action 'a b'"),
        ("train ", "begin with"),
    ],
)
def test_wrong_message_types(text: str, match: str) -> None:
    """Any other text is no message type, and the error shows it and what is wrong with it."""
    assert not is_message_type(text)
    with pytest.raises(ValueError, match=match) as caught:
        split_message_type(text)
    assert repr(text) in str(caught.value)


def test_category_constants() -> None:
    """The constants are the texts that travel."""
    assert (MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY) == ("train", "evaluate", "query")


def test_error_codes() -> None:
    """The numbers of the errors are Flower's."""
    assert {code.name: code.value for code in ErrorCode} == {
        "UNKNOWN": 0,
        "LOAD_CLIENT_APP_EXCEPTION": 1,
        "CLIENT_APP_RAISED_EXCEPTION": 2,
        "MESSAGE_UNAVAILABLE": 3,
        "REPLY_MESSAGE_UNAVAILABLE": 4,
        "NODE_UNAVAILABLE": 5,
        "MOD_FAILED_PRECONDITION": 6,
        "INVALID_FAB": 7,
        "CLIENT_APP_CRASHED": 8,
    }
    assert Error(ErrorCode.NODE_UNAVAILABLE) == Error(5)
    assert Error(5, "why") != Error(5)


def test_repr() -> None:
    """The repr of a message says what it is, from whom to whom, and how large, without its payload."""
    arrays = ParametersRecord({"w": Array("uint8", (9,), "numpy.ndarray", bytes(9))})
    message = Message(metadata(), RecordSet({"p": arrays}))
    assert repr(message) == (
        "Message(train.warmup, message_id='m1', run 7, node 1 to 22, group_id='g3', "
        "content: 1 parameters, 0 metrics, 0 configs, 11 bytes)"
    )
    assert repr(message.create_error_reply(Error(5, "gone"))) == (
        "Message(train.warmup, reply_to_message='m1', run 7, node 22 to 1, group_id='g3', Error(code=5, reason='gone'))"
    )


def test_exceptions() -> None:
    """Every exception is a BrokerflError, is exported, and says in its docstring when it is raised."""
    import brokerfl.common as common

    kinds = [kind for kind in vars(errors_module).values() if getattr(kind, "__module__", "") == errors_module.__name__]
    assert len(kinds) == 30
    for kind in kinds:
        assert issubclass(kind, BrokerflError)
        assert kind.__name__ in common.__all__
        assert kind.__doc__
    assert issubclass(FrameError, ValueError)
    assert issubclass(MessageTooLarge, ValueError)
    assert {k.__name__ for k in kinds if issubclass(k, RunError)} == {
        "RunError", "RunNotFound", "RunAttached", "RunStopped", "RunLost", "RunFenced", "RunDiverged", "RecordMissing",
    }  # fmt: skip
    assert {k.__name__ for k in kinds if issubclass(k, RedisError)} == {
        "RedisError", "RedisUnreachable", "RedisAuthError", "RedisTLSError", "RedisTooOld", "RedisOutOfMemory",
        "RedisRefuses", "InsecureURL",
    }  # fmt: skip
