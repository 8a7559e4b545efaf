"""The playback: what former ServerApps of a run pushed and got, as a resumed app goes through it again.

Owns which recorded message a push is, and that each recorded reply is given once, in the recorded order. It must not
know Redis, or what is pushed for real.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from brokerfl.common import ConfigError, Message, RunDiverged
from brokerfl.server.told import TAGS, Told


class Pushed(NamedTuple):
    """A message of a former ServerApp.

    Attributes:
        message_id: "" if it was refused.
        node_id: the node.
        message_type: its type.
        group_id: its group.
    """

    message_id: str
    node_id: int
    message_type: str
    group_id: str

    @property
    def key(self) -> tuple[int, str, str]:
        """What a push of the same message has."""
        return self.node_id, self.message_type, self.group_id


class Playback:
    """What one tape has. For one thread at a time.

    Args:
        run_id: the run.
        entries: as `Tape.entries` has them.

    Attributes:
        replies: the entries of replies, by the ids of the messages, in their order.
        ids: of all messages.
        left: the messages that the app stopped waiting for.
        told: what the app was told of nodes.

    Raises:
        ConfigError: the entries are not those of a tape of this version.
    """

    def __init__(self, run_id: int, entries: Iterable[Sequence[Any]]) -> None:
        self._run_id = run_id
        self.pushed: list[Pushed] = []
        self.replies: dict[str, Sequence[Any]] = {}
        self.left: set[str] = set()
        self.told = Told()
        try:
            self.ids = self._read(entries)
        except (TypeError, ValueError, LookupError) as wrong:
            raise ConfigError(
                f"the recording of run {run_id} is malformed ({wrong!r}): begin anew with --from-start"
            ) from None
        self._places = {message_id: place for place, message_id in enumerate(self.replies)}
        self._first = 0
        self._unused: dict[tuple[int, str, str], deque[int]] = {}
        for number, each in enumerate(self.pushed):
            self._unused.setdefault(each.key, deque()).append(number)
        self._used = [False] * len(self.pushed)

    def _read(self, entries: Iterable[Sequence[Any]]) -> set[str]:
        numbers: dict[str, int] = {}
        told: list[Sequence[Any]] = []  # since the last push
        for tag, *rest in entries:
            if tag in TAGS:
                told.append((tag, *rest))
            elif tag == "g":
                told = []
            elif tag == "p":
                self.told.note(told)
                told = []
                for each in map(Pushed._make, rest[0]):
                    if each.message_id:
                        numbers[each.message_id] = len(self.pushed)
                    self.pushed.append(each)
            elif tag == "a":
                former, again = rest
                numbers[again] = numbers.pop(former)
                self.pushed[numbers[again]] = self.pushed[numbers[again]]._replace(message_id=again)
            elif tag == "r":
                self.replies[rest[0]] = [tag, *rest]
            elif tag == "l":
                self.left.update(rest[0])
        return set(numbers)

    @property
    def is_behind(self) -> bool:
        """Whether there are recorded messages that the app has not pushed again."""
        while self._first < len(self._used) and self._used[self._first]:
            self._first += 1
        return self._first < len(self._used)

    def match(self, message: Message) -> Pushed | None:
        """Return the recorded message that a push is; None if all of them were pushed again: it is a new one.

        Raises:
            RunDiverged: the record has others in its place.
        """
        if not self.is_behind:
            return None
        meta = message.metadata
        found = Pushed("", meta.dst_node_id, meta.message_type, meta.group_id)
        numbers = self._unused.get(found.key)
        if not numbers:
            recorded = self.pushed[self._first]
            raise RunDiverged(
                f"run {self._run_id} cannot go on: as message {self._first + 1} its recording has {_said(recorded)}, "
                f"where this app pushes {_said(found)}; resume it with the app and the config that it was started "
                "with, or begin anew with --from-start"
            )
        number = numbers.popleft()
        self._used[number] = True
        return self.pushed[number]

    def take(self, message_ids: Collection[str]) -> list[Sequence[Any]]:
        """Return the recorded replies to these messages, in the order in which the app got them, each once."""
        found = sorted((each for each in message_ids if each in self.replies), key=self._places.__getitem__)
        return [self.replies.pop(message_id) for message_id in found]


def _said(message: Pushed) -> str:
    group = f"of group {message.group_id!r}" if message.group_id else "without a group"
    return f"a {message.message_type} message {group} to node {message.node_id}"
