"""Mutated frames for every decoder of the wire layer: ``scripts/fuzz --frames 1000000 --seed 1``.

Owns what a decoder may do with them: return something whose arrays can be read, or raise FrameError, in memory that is
bounded by the frame's size. What frames are mutated into is `mutations`' business.
"""

import argparse
import random
import resource
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from brokerfl.common import Array, FrameError, RecordSet, SType
from brokerfl.wire.frame import MANIFEST
from brokerfl.wire.manifest import decode_manifest, manifest_of
from brokerfl.wire.message import decode_message, message_id_of
from brokerfl.wire.payload import MissingChunkError, assemble
from brokerfl.wire.record import decode_content
from brokerfl.wire.run import decode_entry, decode_run
from brokerfl.wire.weight import MORE
from tests.mutations import MOST_CONTENT, ONLY, VALID, Frame, mutate

#: Bytes that decoding may take: in all, for each byte of a frame (a small number takes 1 in msgpack, 8 in a list of
#: Python), and beside that for what takes more, such as an empty list, until it has taken `weight.MORE`.
BYTES_MORE, BYTES_EACH, BYTES_EACH_ITEM = 256 * 1024, 9, 90

#: Bytes by which the process may grow, as its address space; no limit on systems that do not know one.
MOST_GROWTH = 512 * 1024 * 1024


def _decode_payload(frame: Frame) -> RecordSet:
    manifest = manifest_of(frame, MOST_CONTENT)
    if manifest is None:
        raise FrameError("no manifest")
    with suppress(MissingChunkError):
        content, _ = assemble(manifest, lambda window: [frame.get(b"chunk%d" % index) for index in window])
        return decode_content(content)
    return RecordSet()


def _decode_manifest(frame: Frame) -> None:
    manifest = decode_manifest(frame.get(MANIFEST, b""), MOST_CONTENT)
    assert manifest.size <= MOST_CONTENT
    assert all(chunk.startswith(manifest.key[:8]) for chunk in manifest.chunks)


def _decode_message(frame: Frame) -> RecordSet:
    message_id_of(frame)
    message = decode_message(frame)
    return message.content if message.has_content() else RecordSet()


DECODERS: dict[str, Callable[[Frame], object]] = {
    "message": _decode_message,
    "content": decode_content,
    "run": lambda frame: decode_run(5, frame.get(ONLY, b"")),
    "ledger entry": lambda frame: decode_entry(frame.get(ONLY, b"")).content_key,
    "manifest": _decode_manifest,
    "payload": _decode_payload,
}


def check(decoder: str, frame: Frame) -> bool:
    """Decode a frame; return whether it was accepted.

    Raises:
        AssertionError: something else than FrameError came out, an array cannot be read, or it took too much memory.
    """
    size = sum(map(len, frame.values()))
    allowed = BYTES_MORE + BYTES_EACH * size + min(BYTES_EACH_ITEM * size, MORE)
    allowed += (decoder == "payload") * MOST_CONTENT
    with _traced():
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        accepted = _is_accepted(decoder, frame)
        peak = tracemalloc.get_traced_memory()[1] - before
    assert peak <= allowed, f"decoding a {decoder} took {peak:,} bytes, allowed are {allowed:,}: {_show(frame)}"
    return accepted


@contextmanager
def _traced() -> Iterator[None]:
    """Trace memory, unless it is traced already: each start leaks a little in Python 3.11."""
    if tracemalloc.is_tracing():
        yield
        return
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def _is_accepted(decoder: str, frame: Frame) -> bool:
    try:
        decoded = DECODERS[decoder](frame)
    except FrameError as error:
        if isinstance(error.__context__, MemoryError):  # a decoder may hide one in an error of its own
            raise AssertionError(f"no memory for a {decoder}: {_show(frame)}") from error
        return False
    except Exception as error:
        raise AssertionError(f"a {decoder} raised {error!r}, which is no FrameError: {_show(frame)}") from error
    if isinstance(decoded, RecordSet):
        for record in decoded.parameters_records.values():
            _read(record.values(), frame)
    return True


def _read(arrays: Iterable[Array], frame: Frame) -> None:
    """Read arrays as an app would. Only an .npy file, and what numpy does not have, may be malformed still."""
    for array in arrays:
        try:
            view = array.numpy()
        except (TypeError, ValueError) as error:
            if array.stype == SType.NUMPY and array.dtype != "bfloat16" and bytes(array.data[:6]) != b"\x93NUMPY":
                raise AssertionError(f"an array was accepted that cannot be read: {_show(frame)}") from error
            continue
        assert view.shape == array.shape, _show(frame)
        assert not view.dtype.hasobject, _show(frame)
        assert not view.flags.writeable, _show(frame)


def _show(frame: Frame) -> str:
    return "{" + ", ".join(f"{name!r}: {_shortened(data)}" for name, data in frame.items()) + "}"


def _shortened(data: bytes) -> str:
    return repr(data) if len(data) <= 500 else f"{data[:500]!r} and {len(data) - 500:,} bytes more"


# The loop.


def fuzz(frames: int, seed: int) -> Counter[tuple[str, bool]]:
    """Decode so many mutated frames; return how many of each kind were accepted and refused.

    Raises:
        AssertionError: see `check`.
    """
    rng = random.Random(seed)
    seen: Counter[tuple[str, bool]] = Counter()
    with _traced():
        for number in range(frames):
            decoder, valid = rng.choice(VALID)
            frame = mutate(rng, valid)
            try:
                seen[decoder, check(decoder, frame)] += 1
            except AssertionError as error:
                error.add_note(f"frame {number} of seed {seed}")
                raise
    return seen


def limit_memory() -> None:
    """Let the process grow by no more than `MOST_GROWTH` from here on."""
    with suppress(OSError, ValueError, IndexError):  # only Linux tells how large it is now
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MOST_GROWTH, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main(arguments: Sequence[str]) -> int:
    """Run the loop and print what came of it."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=1_000_000, help="how many (1000000)")
    parser.add_argument("--seed", type=int, default=1, help="decides which (1)")
    given = parser.parse_args(arguments)
    for decoder, frame in VALID:
        assert check(decoder, frame), f"a valid {decoder} was refused"
    limit_memory()
    started = time.monotonic()
    seen = fuzz(given.frames, given.seed)
    for decoder in DECODERS:
        print(f"{decoder:14}{seen[decoder, True]:10,} accepted{seen[decoder, False]:10,} refused")
    print(f"{seen.total():,} frames of seed {given.seed} in {time.monotonic() - started:.0f} s: only FrameErrors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
