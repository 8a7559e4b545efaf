"""Hashing: the sha256 of chunks, in separate threads: it is the largest cost of sending a model, and releases the GIL.

Owns these threads. It must not know what chunks are part of.
"""

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from itertools import islice

#: Most threads, and most chunks that are hashed at once.
_MOST = 4

#: How much nicer the hashing threads are. While another run moved large models, the p95 of a tiny round grew 7.1 to 7.3
#: times with 0, 5.0 to 6.1 times with 10, and 4.9 to 5.3 times with 19 (``scripts/bench --only two-runs``). But when
#: other threads are busy, 19 gets a sixtieth of a core and 10 a tenth
#: (https://man7.org/linux/man-pages/man7/sched.7.html).
NICENESS = 10

_hashers: ThreadPoolExecutor | None = None
_making = threading.Lock()


def digest_now(data: memoryview) -> bytes:
    """Return the sha256 of one chunk, in this thread."""
    return sha256(data).digest()


def digest_soon(data: memoryview) -> "Future[bytes]":
    """Return the future sha256 of one chunk."""
    global _hashers
    with _making:
        if _hashers is None:
            _hashers = ThreadPoolExecutor(min(_MOST, os.cpu_count() or 1), "hasher", _give_way)
        return _hashers.submit(digest_now, data)


def digests_of(chunks: Iterator[memoryview]) -> Iterator[bytes]:
    """Yield the sha256 of each chunk; a single one is not worth a thread."""
    first = list(islice(chunks, 2))
    if len(first) < 2:
        yield from map(digest_now, first)
        return
    hashing = [digest_soon(chunk) for chunk in first]
    while hashing:
        hashing += [digest_soon(chunk) for chunk in islice(chunks, _MOST - len(hashing))]
        yield hashing.pop(0).result()


def _give_way() -> None:
    """Let messages of other runs pass: hashing is most of the work on a model, and a message is quick."""
    if sys.platform == "linux":  # elsewhere it would apply to the whole process
        os.nice(NICENESS)


def _forget_hashers() -> None:
    """A forked process inherits the pool without its threads."""
    global _hashers, _making
    _hashers, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_hashers)
