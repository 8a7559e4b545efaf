"""The results of an app's own steps: recorded when the run moves on, and given back to a resumed app.

Owns that a step with a recorded result is not called again, that each name is used once, and how much is recorded. It
must not know what a step does.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from brokerfl.common import MessageTooLarge
from brokerfl.common.config import is_utf8
from brokerfl.server.book import Book
from brokerfl.server.record import Record
from brokerfl.server.session import Session
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.results import decode_result, encode_result
from brokerfl.wire.steps import RESULT, encode_value, named, size_of_value

T = TypeVar("T")

#: Most characters of a name.
_LONGEST_NAME = 200

#: Most bytes of the results that are too small to be chunks: they are one hash. Larger ones count against `--max-run`.
MOST_SMALL = 64 * 1024 * 1024


class Results:
    """The results of one run's steps, from any thread.

    Args:
        session: the run's.
        record: what a former ServerApp recorded is given back.
        book: knows which replies the app has.
    """

    def __init__(self, session: Session, record: Record, book: Book) -> None:
        self._session = session
        self._record = record
        self._book = book
        self._pending = book.kept.pending
        self._used: set[str] = set()
        self._adding = threading.Lock()
        recorded = [(rest.partition(":"), field) for rest, field in named(record.fields, RESULT)]
        self._recorded = {name: f"{RESULT}{number}:{name}" for (number, _, name), _ in recorded}
        self._next = 1 + max((int(number) for (number, _, _), _ in recorded), default=0)
        self._small = sum(len(field) for _, field in recorded)
        self._size = sum(map(size_of_value, (field for _, field in recorded)))
        self._say_size()

    def take(self, name: str, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        """Return the recorded result of a step, or call its function; as `Driver.step`."""
        self._use(name)
        try:
            self._session.check()
            recorded = self._recorded.get(name)
            content = self._record.read(recorded) if recorded is not None else None
            if content is not None:
                found: T = decode_result(content)
                return found
            with self._book.lock:
                step = self._pending.begin(each.message_id for each in self._book.answers.handed_over())
            try:
                result = function(*arguments)
                self._add(name, result)
                return result
            finally:
                with self._book.lock:
                    self._pending.end(step)
        except BaseException:
            self._used.discard(name)
            raise

    def _use(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a step is text, not {type(name).__name__}")
        if not 0 < len(name) <= _LONGEST_NAME or not is_utf8(name):
            raise ValueError(f"the name of a step has 1 to {_LONGEST_NAME} characters: {name[:40]!r} cannot be one")
        with self._adding:
            if name in self._used:
                raise ValueError(
                    f"the step {name!r} was taken before: each step of a run needs a name of its own, such as one with "
                    "the number of the round"
                )
            self._used.add(name)

    def _add(self, name: str, result: Any) -> None:
        with self._adding:
            content = self._record.encode(encode_result(result))
            if content.payload is None:
                self._check_room(name, content)
            with self._book.lock:
                self._pending.upload(content)
            try:
                self._record.bring(content)
                with self._book.lock:
                    self._pending.add(f"{RESULT}{self._next}:{name}", content)
            finally:
                with self._book.lock:
                    self._pending.upload(None)
            self._next += 1
            self._size += size_of_value(encode_value(content.fields))
            self._say_size()

    def _say_size(self) -> None:
        if self._size:
            self._record.tell_size(self._size)

    def _check_room(self, name: str, content: EncodedContent) -> None:
        size = self._small + sum(map(len, content.fields.values()))
        if size > MOST_SMALL:
            raise MessageTooLarge(
                f"the result of step {name!r} cannot be recorded: small results of all steps have at most "
                f"{MOST_SMALL // 1024**2} MiB; keep what changes in context.state"
            )
        self._small = size
