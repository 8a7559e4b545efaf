"""What arrives is, bit for bit, what was there at the push: of every dtype, of every size."""

import numpy as np
import pytest

from brokerfl.common import Array, Context, Message, ParametersRecord, RecordSet
from brokerfl.common.dtypes import ITEMSIZE
from brokerfl.wire import manifest, payload
from brokerfl.wire.record import encode_content
from tests.apps import Gate, Seen, driving, echo_app, federation, number
from tests.conftest import Backend
from tests.stage import CHUNK, INLINE, LAYER, chunks_in, chunks_of, layer, layers_in, model, to_all

#: TLS changes nothing here; test_messages.py has it.
WITHOUT = ("redis-tls",)

pytestmark = pytest.mark.usefixtures("small_chunks")

#: Sizes as they are for everyone.
REAL_INLINE, REAL_CHUNK = payload.INLINE, manifest.CHUNK


@pytest.mark.parametrize("size", [10, LAYER], ids=["inline", "chunks"])
def test_contents_are_frozen_at_the_push(backend: Backend, size: int) -> None:
    """What the app does to its arrays right after the push is not what the node gets."""
    gate = Gate()
    array = layer(1, size)
    before = array.tobytes()
    with federation(backend, gate.app, nodes=1) as nodes, driving(backend) as driver:
        node = nodes.nodes[0].node_id
        batch = [driver.create_message(content, "train", node, "1") for content in (number(1), model(array))]
        ids = driver.push_messages(batch)
        array[:] = 0
        gate.go.set()
        replies = {reply.metadata.reply_to_message: reply for reply in driver.replies(ids)}
        assert layers_in(replies[ids[1]].content) == [before]


def test_every_dtype_comes_back(backend: Backend) -> None:
    """Arrays of every dtype, of no dimension, no element, few and many, arrive bit for bit, read-only and aligned."""
    rng = np.random.default_rng(5)
    arrays: dict[str, Array] = {}
    for dtype, itemsize in ITEMSIZE.items():
        for shape in ((), (0,), (2, 0, 3), (3,), (300, 2), (5, 7, 61)):
            data = rng.bytes(itemsize * int(np.prod(shape, dtype=int)))
            data = bytes(byte & 1 for byte in data) if dtype == "bool" else data
            arrays[f"{dtype}{shape}"] = Array(dtype, shape, "numpy.ndarray", data)
    seen = Seen()

    @seen.app.query()
    def echo(message: Message, context: Context) -> Message:
        seen.contents.append(message.content)
        return message.create_reply(message.content)

    with federation(backend, seen.app, nodes=1) as nodes, driving(backend) as driver:
        content = RecordSet({"p": ParametersRecord(dict(arrays))})
        [reply] = to_all(driver, [nodes.nodes[0].node_id], content, kind="query")
        for received in (*seen.contents, reply.content):
            record = received.parameters_records["p"]
            assert list(record) == list(arrays)
            for name, array in record.items():
                assert (array.dtype, array.shape, array.data) == (
                    arrays[name].dtype,
                    arrays[name].shape,
                    arrays[name].data,
                )
                view = array._view()
                assert not view.flags.writeable
                assert memoryview(array.data).readonly
                assert not view.size or view.ctypes.data % 16 == 0


def test_sizes_around_the_limits_come_back(backend: Backend) -> None:
    """Contents of INLINE bytes, one more, and arrays around one and several chunks arrive; only the first is inline."""

    def content_of(size: int) -> RecordSet:
        """A content of so many bytes in all."""
        for data in range(size, 0, -1):
            made = model(layer(size, data))
            if sum(map(len, encode_content(made).values())) == size:
                return made
        raise AssertionError("no such content")

    contents = [content_of(INLINE), content_of(INLINE + 1)]
    contents += [model(layer(size, size)) for size in (CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 40 * CHUNK + 1)]
    with federation(backend, nodes=1) as nodes, driving(backend) as driver:
        for group, content in enumerate(contents):
            [reply] = to_all(driver, [nodes.nodes[0].node_id], content, str(group))
            assert layers_in(reply.content) == layers_in(content)
            assert chunks_in(backend) == (chunks_of(driver, content) if group else set())


def test_several_mebibytes_pass_and_come_back(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real sizes of chunks, and where it can be set, values of at most 1 MB: a model of 5 MB, bit for bit."""
    monkeypatch.setattr(payload, "INLINE", REAL_INLINE)
    monkeypatch.setattr(manifest, "CHUNK", REAL_CHUNK)
    content = model(layer(1, 5_000_000), layer(2, 10), layer(3, REAL_CHUNK), layer(4, REAL_INLINE))
    before = backend.admin.config_get("proto-max-bulk-len") if backend.is_real else {}
    if before:
        backend.admin.config_set("proto-max-bulk-len", 1024 * 1024)
    try:
        with federation(backend, echo_app(), nodes=2) as nodes, driving(backend) as driver:
            ids = [node.node_id for node in nodes.nodes]
            for group in ("1", "2"):
                replies = to_all(driver, ids, content, group)
                assert [layers_in(reply.content) for reply in replies] == [layers_in(content)] * 2
            if before:
                assert int(backend.admin.config_get("proto-max-bulk-len")["proto-max-bulk-len"]) == 1024 * 1024
                longest = max(backend.admin.strlen(key) for key in chunks_in(backend))
                assert longest <= 1024 * 1024 - 1024
    finally:
        if before:
            backend.admin.config_set("proto-max-bulk-len", before["proto-max-bulk-len"])
