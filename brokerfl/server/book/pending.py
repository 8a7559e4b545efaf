"""The results of steps that an app has taken, and that no commit has recorded yet.

Owns which those are, and whether a step that is under way holds back the run. It must not know what a result means.
"""

from collections.abc import Collection, Iterable
from itertools import count
from typing import NamedTuple

from brokerfl.broker.steps import Recorded
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.steps import encode_value, value_field


class _Result(NamedTuple):
    """A result: the field of the record that it becomes, and its content."""

    field: bytes
    content: EncodedContent


class Pending:
    """The results that the next commit records. Guarded by the book's lock."""

    def __init__(self) -> None:
        self._results: dict[bytes, _Result] = {}
        self._uploading: EncodedContent | None = None
        self._under_way: dict[int, frozenset[str]] = {}
        self._numbers = count()

    def begin(self, handed_over: Iterable[str]) -> int:
        """A step begins; the app has the replies to these messages already. Return what `end` is to be called with."""
        number = next(self._numbers)
        self._under_way[number] = frozenset(handed_over)
        return number

    def end(self, number: int) -> None:
        """The step has returned or raised."""
        del self._under_way[number]

    @property
    def is_any_under_way(self) -> bool:
        """Whether there is a step that has begun and not ended."""
        return bool(self._under_way)

    def holds_back(self, handed_over: Collection[str]) -> bool:
        """Return whether the app got a reply in a step that has not returned: what it taught is not recorded yet."""
        return any(not before.issuperset(handed_over) for before in self._under_way.values())

    def upload(self, content: EncodedContent | None) -> None:
        """A result is being uploaded; None when that is over."""
        self._uploading = content

    def add(self, name: str, content: EncodedContent) -> None:
        """A step has this result, whose chunks are in Redis."""
        self._results[value_field(name)] = _Result(encode_value(content.fields), content)

    @property
    def uploads(self) -> list[EncodedContent]:
        """The large contents that are to be there when the results are recorded."""
        return [result.content for result in self._results.values() if result.content.payload is not None]

    @property
    def contents(self) -> frozenset[bytes]:
        """What all large contents are called in Redis."""
        uploading = [] if self._uploading is None else [self._uploading]
        return frozenset(content.key for content in [*self.uploads, *uploading])

    def after(self, former: Recorded) -> Recorded | None:
        """Return the record with these results; None if there are none."""
        if not self._results:
            return None
        fields = {name: result.field for name, result in self._results.items()}
        return Recorded({**former.fields, **fields}, former.contents | {content.key for content in self.uploads})

    def saved(self, recorded: Recorded) -> None:
        """A commit wrote this record; one without anything forgets all results."""
        if not recorded.fields:
            self._results.clear()
        for name in [name for name in self._results if name in recorded.fields]:
            del self._results[name]
