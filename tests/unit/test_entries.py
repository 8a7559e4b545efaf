"""Entries of a recording: what was written comes back, and a torn end takes nothing else along."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokerfl.common import Array, Error, Message, Metadata, ParametersRecord, RecordSet
from brokerfl.server.tape import Tape, path_of
from brokerfl.wire.entries import encode_entry, read_entries
from brokerfl.wire.run import Run

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
ENTRIES = st.lists(st.lists(st.recursive(SCALARS, st.lists, max_leaves=5), min_size=1), max_size=6)


@settings(deadline=None)
@given(ENTRIES, st.data())
def test_entries_come_back(entries: list[list[object]], data: st.DataObject) -> None:
    """All of them do; cut at any byte, those before the cut do; with any other byte changed, those before that do."""
    written = [encode_entry(entry) for entry in entries]
    file = b"".join(written)
    assert [entry for _, _, entry in read_entries(io.BytesIO(file))] == entries
    cut = data.draw(st.integers(0, len(file)))
    ends = [sum(map(len, written[:count])) for count in range(1, len(written) + 1)]
    whole = [entry for entry, end in zip(entries, ends, strict=True) if end <= cut]
    assert [entry for _, _, entry in read_entries(io.BytesIO(file[:cut]))] == whole
    if cut < len(file):
        changed = bytearray(file)
        changed[cut] ^= data.draw(st.integers(1, 255))
        assert [entry for _, _, entry in read_entries(io.BytesIO(bytes(changed)))] == whole


def reply(number: int) -> Message:
    """A reply with an array of its own."""
    metadata = Metadata(7, f"m{number}-reply", 5, 1, f"m{number}", "1", 3.5, "train", 1.25)
    return Message(metadata, content=RecordSet({"p": ParametersRecord({"w": Array(np.full(1100, number, np.int8))})}))


def told(message: Message) -> tuple[object, ...]:
    """All that a message says."""
    return message.metadata, message.error if message.has_error() else message.content


def replies_in(read: Tape) -> list[tuple[object, ...]]:
    """All that the replies of a tape say."""
    return [told(read.message(entry)) for entry in read.entries if entry[0] == "r"]


def tape(folder: Path) -> Tape:
    """The tape of run 7."""
    made = Tape(folder, 7, 10**9, is_new=not path_of(folder, 7).exists())
    made.begin(Run(7, "app", {"lr": 0.5}, 0.0))
    return made


def test_a_torn_end_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut at each byte of its last two entries, a tape has what was before, and takes what comes then."""
    first = tape(tmp_path)
    first.reply(reply(1))
    first.sync()
    before = path_of(tmp_path, 7).stat().st_size
    first.reply(reply(2))
    first.close()
    file = path_of(tmp_path, 7).read_bytes()
    for cut in range(before, len(file)):
        path_of(tmp_path, 7).write_bytes(file[:cut])
        caplog.clear()
        torn = tape(tmp_path)
        torn.sync()
        size = path_of(tmp_path, 7).stat().st_size
        assert size == torn._file.tell()
        assert ("cut off" in caplog.text) == (size - len(encode_entry(["g"])) < cut)
        assert [entry[1] for entry in torn.entries if entry[0] == "r"] == ["m1"]
        torn.reply(reply(3))
        torn.close()
        again = tape(tmp_path)
        assert replies_in(again) == [told(reply(1)), told(reply(3))]
        again.close()


def test_what_is_recorded_of_a_reply(tmp_path: Path) -> None:
    """Metadata, contents and Errors come back as they were."""
    written = tape(tmp_path)
    error = Message(reply(2).metadata, error=Error(3, "no"))
    written.reply(reply(1))
    written.reply(error)
    written.close()
    read = tape(tmp_path)
    assert replies_in(read) == [told(reply(1)), told(error)]
    read.close()
