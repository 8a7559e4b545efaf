"""The story of a run: the steps that its loops have taken, in their order, and what each of them gave.

Owns how a step is written, that a resumed app takes the same ones, and what is said if it does not. It must not know
arrays, or how a story reaches Redis.

A step is a list: its hook, its round, whether it gave arrays, which are recorded apart, and what else it gave, as a
tree of `values`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from brokerfl.common import RunDiverged
from brokerfl.flower.values import RecordTypeError, decode, encode
from brokerfl.wire.steps import HEAD, Head, decode_head, decode_pages, encode_page, page_field

#: The first and the last step of a loop.
START, END = "start", "end"

#: What each hook does, as in "round 5 (evaluate)".
_WORDS = {
    "configure_train": "train",
    "configure_evaluate": "evaluate",
    "configure_fit": "train",
    "aggregate_train": "aggregate",
    "aggregate_fit": "aggregate",
    "aggregate_evaluate": "aggregate evaluate",
    "evaluate": "central evaluate",
    "evaluate_fn": "evaluate_fn",
}


def place_in_words(hook: str, number: int) -> str:
    """Return where a run is, such as ``round 5 (evaluate)``."""
    if hook == START:
        return "the beginning of its loop"
    if hook == END:
        return "the end of its loop"
    return f"round {number} ({_WORDS.get(hook, hook)})"


class Step(NamedTuple):
    """One step.

    Attributes:
        number: its place in the story.
        gave_arrays: whether it gave arrays.
        value: what else it gave.
    """

    number: int
    gave_arrays: bool
    value: Any


class Story:
    """The steps of one run. For the thread of the loop.

    Args:
        run_id: the run.
        fields: what a former ServerApp recorded, as `brokerfl.wire.steps` lays it out.

    Attributes:
        head: where that was; None if nothing was recorded.
    """

    def __init__(self, run_id: int, fields: Mapping[bytes, bytes]) -> None:
        self._run_id = run_id
        self.head: Head | None = decode_head(fields[HEAD]) if HEAD in fields else None
        self._steps = decode_pages(fields)[: self.head.steps if self.head else 0]
        self._pages = {name: data for name, data in fields.items() if name.startswith(page_field(0)[:-1])}
        self._written = len(self._steps)
        self._at = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def is_told(self) -> bool:
        """Whether the app has come to the end of what was recorded."""
        return self._at == len(self._steps)

    def recall(self, hook: str, number: int) -> Step:
        """Return the next step, which the app takes again.

        Raises:
            RunDiverged: it is another one.
        """
        if self.is_told:
            assert self.head is not None, "there is a story"
            raise self.diverged(place_in_words(self.head.hook, self.head.round), place_in_words(hook, number))
        recorded_hook, recorded_number, gave_arrays, tree = self._steps[self._at]
        if (recorded_hook, recorded_number) != (hook, number):
            raise self.diverged(place_in_words(recorded_hook, recorded_number), place_in_words(hook, number))
        self._at += 1
        return Step(self._at - 1, gave_arrays, decode(tree, []))

    def is_next(self, hook: str) -> bool:
        """Return whether the next recorded step is a call of this hook."""
        return not self.is_told and self._steps[self._at][0] == hook

    def reaches(self, hook: str, number: int) -> bool:
        """Return whether the app takes the step that was under way; if the loop had ended, it may go on now.

        Raises:
            RunDiverged: it takes another one.
        """
        head = self.head
        assert head is not None, "there is a story"
        if self.is_told and (head.hook, head.round) == (hook, number):
            return True
        if head.hook == END and self._at == len(self._steps) - 1 and hook != END:
            self._steps.pop()
            if self._written > len(self._steps):
                self._rewrite()
            return True
        return False

    def _rewrite(self) -> None:
        self._pages = {page_field(0): encode_page(self._steps)} if self._steps else {}
        self._written = len(self._steps)

    def diverged(self, recorded: str, found: str) -> RunDiverged:
        """Return the error that says what is different."""
        return RunDiverged(
            f"run {self._run_id} cannot go on: its record has {recorded} where this app has {found}; resume it with "
            "the app and the config that it was started with, or begin anew with --from-start"
        )

    def compare(self, recorded: list[Any], found: list[Any]) -> None:
        """Compare two loops: the classes of their strategies, and the forms of their first models.

        Raises:
            RunDiverged: they are different.
        """
        if recorded[0] != found[0]:
            raise self.diverged(f"the strategy {recorded[0]}", found[0])
        if recorded[1] != found[1]:
            ours, theirs = recorded[1] or [], found[1] or []
            pairs = [(one, other) for one, other in zip(ours, theirs, strict=False) if one != other]
            one, other = pairs[0] if pairs else (f"a model of {len(ours)} arrays", f"one of {len(theirs)}")
            raise self.diverged(str(one), str(other))

    def note(self, hook: str, number: int, value: Any = None, *, gave_arrays: bool = False) -> int:
        """Add a step; return its number.

        Raises:
            RecordTypeError: the value has a type that no record holds.
        """
        encoded = encode(value)
        if encoded.sources:
            raise RecordTypeError("an array beside the model")
        self._steps.append([hook, number, gave_arrays, encoded.tree])
        self._at = len(self._steps)
        return len(self._steps) - 1

    def pages(self) -> dict[bytes, bytes]:
        """Return the fields of all steps so far; those that were not committed are on a page of their own.

        Raises:
            ValueError, MessageTooLarge: a step cannot be written.
        """
        if len(self._steps) == self._written:
            return dict(self._pages)
        return {**self._pages, page_field(self._written): encode_page(self._steps[self._written :])}

    def written(self, pages: Mapping[bytes, bytes], steps: int) -> None:
        """These pages were committed, with so many steps."""
        self._pages, self._written = dict(pages), steps
