"""What leaves a site: a line for each reply, before it is published; and a review that may keep it."""

import json
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from brokerfl.client import ClientApp, publisher
from brokerfl.client.audit import Audit, Receipt
from brokerfl.client.payloads import Payloads
from brokerfl.client.site import Review, Site
from brokerfl.common import Context, ErrorCode, JournalError, Message, RedisUnreachable
from brokerfl.wire.record import encode_content
from tests.apps import Bench, Counter, driving, echo_app, eventually, number, number_in
from tests.conftest import Backend
from tests.stage import (
    LAYER,
    Streams,
    ask,
    by_hand,
    layer,
    model,
    numbers,
    push,
    push_numbers,
    reason_of,
    serving,
    turns,
)

WITHOUT = ("redis-tls",)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the audit file is."""
    return tmp_path / "audit.jsonl"


def audited(file: Path, review: Review | None = None) -> Site:
    """A site that keeps what leaves it."""
    return Site(audit=Audit(file), review=review)


def lines(file: Path) -> list[dict[str, Any]]:
    """What the file says."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def digest_of(message: Message) -> str:
    """The SHA-256 of what a content is encoded as."""
    return sha256(b"".join(encode_content(message.content).values())).hexdigest()


@pytest.mark.parametrize("workers", [1, 2])
def test_each_reply_has_a_line(backend: Backend, file: Path, small_chunks: None, workers: int) -> None:
    """Who asked what, how large both were, and a digest with which what arrived can be compared."""
    app = echo_app()
    app.train("raise")(Bench().fail)
    with (
        driving(backend) as driver,
        driving(backend) as other,
        serving(backend, app, site=audited(file), workers=workers) as node,
    ):
        large = push(driver, node.node_id, model(layer(1), layer(2)), kind="evaluate")
        ids = [*push_numbers(driver, node, 1, 2), large, push(driver, node.node_id, number(3), kind="train.raise")]
        others = push_numbers(other, node, *range(20))
        replies = {reply.metadata.reply_to_message: reply for reply in driver.replies(ids, timeout=20)}
        assert len(numbers(other, others)) == 20
        told = {line["message"]: line for line in lines(file)}
        assert sorted(told) == sorted([*ids, *others])
        assert len(lines(file)) == len(told)
        for message_id in ids[:3]:
            line, reply = told[message_id], replies[message_id]
            assert (line["outcome"], line["error"], line["sha256"]) == ("reply", "", digest_of(reply))
            assert (line["node"], line["run"]) == (str(node.node_id), str(driver.run.run_id))
            assert line["bytes_in"] == line["bytes_out"] == sum(map(len, encode_content(reply.content).values()))
        assert told[large]["type"] == "evaluate"
        assert told[large]["bytes_out"] > 2 * LAYER
        error, reason = told[ids[3]], replies[ids[3]].error.reason
        assert (error["type"], error["outcome"], error["error"]) == ("train.raise", "error", "ValueError")
        assert error["sha256"] == sha256(reason.encode()).hexdigest()
        assert error["bytes_out"] == len(reason)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_line_comes_first(
    backend: Backend, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    """When a reply is published, or the first byte of a large one, its line is there."""
    seen: list[int] = []
    publish, upload = publisher.publish, Payloads.upload

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen.append(len(lines(file)))
            return original(*arguments)

        return call

    monkeypatch.setattr(publisher, "publish", watched(publish))
    monkeypatch.setattr(Payloads, "upload", watched(upload))
    with driving(backend) as driver, serving(backend, Counter().app, tmp_path, site=audited(file)) as node:
        for size in (0, LAYER):
            [reply] = driver.replies([ask(driver, node, size)], timeout=20)
            assert reply.has_content()
    assert seen == [1, 2, 2]


@pytest.mark.parametrize("size", [0, LAYER])
def test_a_node_that_is_killed_before_it_published(
    backend: Backend, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None, size: int
) -> None:
    """It publishes when it is started again, and there is no second line; also if Redis takes the reply twice."""
    counter, publish, asked = Counter(), publisher.publish, list[str]()
    with driving(backend) as driver:
        with by_hand(backend, counter.app, tmp_path, site=audited(file)) as node:
            asked.append(ask(driver, node, size))
            monkeypatch.setattr(publisher, "publish", lambda *_: (_ for _ in ()).throw(RedisUnreachable("killed")))
            eventually(lambda: (node.turn(0.05), lines(file))[1])
            monkeypatch.setattr(publisher, "publish", publish)
        with serving(backend, counter.app, tmp_path, site=audited(file)) as node:
            [reply] = driver.replies(asked, timeout=20)
            assert reply.content.metrics_records["m"]["n"] == 1
            asked.append(ask(driver, node))
            assert [each.has_content() for each in driver.replies(asked[1:], timeout=20)] == [True]
    assert counter.calls == 2
    assert [line["message"] for line in lines(file)] == asked


def test_what_is_asked_again_has_one_line(backend: Backend, file: Path) -> None:
    """A Redis that forgot a reply is sent it again."""
    with driving(backend) as driver, by_hand(backend, echo_app(), None, site=audited(file)) as node:
        streams = Streams(backend, driver, node)
        asked = push_numbers(driver, node, 1)
        _, fields = streams.entry(streams.inbox)
        eventually(lambda: (node.turn(0.05), streams.lengths()[1])[1])
        streams.forget_replies()
        streams.again(fields)
        eventually(lambda: (node.turn(0.05), streams.lengths()[1])[1])
        assert numbers(driver, asked) == [1]
        assert len(lines(file)) == 1


def test_a_file_that_is_moved_away(backend: Backend, file: Path) -> None:
    """The next line begins a new file: nothing has to tell the node that the file was rotated."""
    old = file.with_suffix(".1")
    with driving(backend) as driver, serving(backend, echo_app(), site=audited(file)) as node:
        assert numbers(driver, push_numbers(driver, node, 1)) == [1]
        file.rename(old)
        assert numbers(driver, push_numbers(driver, node, 2)) == [2]
    assert [len(lines(each)) for each in (old, file)] == [1, 1]


@pytest.mark.parametrize("size", [0, LAYER])
def test_a_file_that_cannot_be_written(backend: Backend, file: Path, small_chunks: None, size: int) -> None:
    """The node ends with an error that names it, and nothing has left."""
    with driving(backend) as driver, by_hand(backend, Counter().app, None, site=audited(file)) as node:
        ask(driver, node, size)
        file.unlink()
        file.mkdir()
        with pytest.raises(JournalError, match=f"{file} cannot be written .* sends no reply that is not in it"):
            turns(node, 10, Bench())
        assert Streams(backend, driver, node).lengths() == (1, 0, 0)


def test_a_line_that_was_cut_off(file: Path) -> None:
    """By a power failure: the next one begins behind it."""

    def receipt(message: str, digest: str | None = "00") -> Receipt:
        return Receipt("1", "1234", "2", message, "train", 1, 1, digest)

    first = Audit(file)
    first.write([receipt("a"), receipt("b")])
    first.close()
    file.write_bytes(file.read_bytes() + b'{"time": "20')
    second = Audit(file)
    second.write([receipt("b"), receipt("c"), receipt("b", None)])
    second.write([receipt("b", "another execution")])
    cut = [line for line in file.read_text().splitlines() if not line.endswith("}")]
    assert cut == ['{"time": "20']
    assert file.read_text().count('"message": "b"') == 2
    assert file.read_text().count('"message": "c"') == 1


# The review.


def reviewed(backend: Backend, file: Path, review: Review, app: ClientApp) -> Any:
    return serving(backend, app, site=audited(file, review))


@pytest.mark.parametrize("verdict", [None, True])
def test_a_review_lets_a_reply_pass(backend: Backend, file: Path, verdict: object) -> None:
    """It is given the message and what the app returned."""
    seen: list[tuple[int, int]] = []

    def review(message: Message, reply: Message) -> object:
        seen.append((number_in(message), number_in(reply)))
        return verdict

    with driving(backend) as driver, reviewed(backend, file, review, Bench().app) as node:
        assert numbers(driver, push_numbers(driver, node, 5)) == [1]
        assert seen == [(5, 1)]


def raises(message: Message, reply: Message) -> object:
    raise ValueError("secret")


@pytest.mark.parametrize("review", [raises, lambda *_: False, lambda *_: 0, lambda *_: "no", lambda: True])
def test_a_review_keeps_a_reply(
    backend: Backend, file: Path, caplog: pytest.LogCaptureFixture, review: Callable[..., Any]
) -> None:
    """Whatever is not a clear yes: the ServerApp hears who refused, the log why, and the state is as it was."""
    keeps = [True]

    def once(message: Message, reply: Message) -> object:
        return review(message, reply) if keeps else None

    with driving(backend) as driver, reviewed(backend, file, once, Bench().app) as node:
        [kept] = driver.replies(push_numbers(driver, node, 5), timeout=20)
        assert reason_of(kept, ErrorCode.MOD_FAILED_PRECONDITION).endswith("the node's site refused the reply")
        assert "secret" not in kept.error.reason
        assert "The review refused a reply: " in caplog.text
        keeps.clear()
        assert numbers(driver, push_numbers(driver, node, 5)) == [1]
    assert [line["outcome"] for line in lines(file)] == ["refused", "reply"]


def test_what_is_no_reply_is_not_reviewed(backend: Backend, file: Path) -> None:
    """An app that returns nothing has raised."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return None  # type: ignore[return-value]

    with driving(backend) as driver, reviewed(backend, file, raises, app) as node:
        [error] = driver.replies(push_numbers(driver, node, 5), timeout=20)
        assert "returned NoneType" in reason_of(error, ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
        assert lines(file)[0]["error"] == "TypeError"
