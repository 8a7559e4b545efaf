"""A site with signed and sealed runs: its gate knows owners by their keys, its audit file what was said in clear."""

import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from brokerfl.client.audit import Audit
from brokerfl.client.gate import Gate
from brokerfl.client.gate_folder import GateFolder, Verdict
from brokerfl.client.site import Site
from brokerfl.common import Context, ErrorCode, Message
from brokerfl.wire.record import encode_content
from tests.apps import driving, echo_app, eventually, number
from tests.conftest import Backend
from tests.parties import Parties
from tests.stage import layer, model, push, reason_of, serving

WITHOUT = ("fakeredis", "redis-tls")

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("seals", [False, True])
def test_an_owner_is_known_by_the_key(backend: Backend, tmp_path: Path, seals: bool) -> None:
    """Its table lets its runs in; the file has its key and what was replied, as it is in clear."""
    parties = Parties("a", seals=seals)
    key = b64encode(parties.owners["lab"].signing).decode()
    gate, folder, audit = tmp_path / "gate.toml", GateFolder(tmp_path / "node" / "gate"), tmp_path / "audit.jsonl"
    gate.write_text(f'["{key}"]\napprove = "always"\ntypes = ["train"]\nmessage-configs = {{}}')
    site, app = Site(Gate(gate, folder), Audit(audit)), echo_app()

    @app.train("raise")
    def fail(message: Message, context: Context) -> Message:
        raise ValueError("secret")

    with (
        serving(backend, app, tmp_path / "node", name="a", site=site, protection=parties.of_node("a")) as node,
        driving(backend, protection=parties.of_owner) as driver,
    ):
        contents = [number(1), model(layer(1))]
        ids = [push(driver, node.node_id, content) for content in contents]
        replies = {reply.metadata.reply_to_message: reply for reply in driver.replies(ids, timeout=20)}
        told = {line["message"]: line for line in map(json.loads, audit.read_text().splitlines())}
        assert set(told) == set(ids) == set(replies)
        for message_id, content in zip(ids, contents, strict=True):
            clear = b"".join(encode_content(content).values())
            assert replies[message_id].has_content()
            assert told[message_id]["owner"] == key
            assert (told[message_id]["sha256"], told[message_id]["bytes_out"]) == (
                sha256(clear).hexdigest(),
                len(clear),
            )
        failed = push(driver, node.node_id, number(1), kind="train.raise")
        eventually(folder.entries)
        [entry] = folder.entries()
        assert (entry.record["owner"], entry.record["type"]) == (key, "train.raise")
        folder.decide(driver.run.run_id, Verdict.APPROVED, {})
        [reply] = driver.replies([failed], timeout=20)
        assert reason_of(reply, ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
        line = json.loads(audit.read_text().splitlines()[-1])
        assert (line["outcome"], line["error"]) == ("error", "ValueError")


def test_a_key_that_nobody_checked_names_no_owner(backend: Backend, tmp_path: Path) -> None:
    """A node without --sign does not believe what a frame says of its owner."""
    parties = Parties("a")
    key = b64encode(parties.owners["lab"].signing).decode()
    gate, folder = tmp_path / "gate.toml", GateFolder(tmp_path / "node" / "gate")
    gate.write_text(f'["{key}"]\napprove = "always"')
    with (
        serving(backend, echo_app(), tmp_path / "node", name="a", site=Site(Gate(gate, folder))) as node,
        driving(backend, protection=parties.of_owner) as driver,
    ):
        push(driver, node.node_id, number(1))
        eventually(folder.entries)
        [entry] = folder.entries()
        assert entry.record["owner"] != key
        assert entry.record["why"] == "the gate's file does not name its owner"
