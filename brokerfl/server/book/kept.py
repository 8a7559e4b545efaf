"""The contents that Redis keeps although no message in the book needs them.

Owns which those are: the saved state, the record of the run's steps, the results that the next commit records, and what
is on its way. It must not know messages
or Redis.
"""

from collections.abc import Collection, Iterable

from brokerfl.broker.steps import Recorded
from brokerfl.server.book.pending import Pending
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.steps import HEAD, decode_head


class Kept:
    """What one run keeps. Guarded by the book's lock.

    Args:
        state_key: what the state that the last commit saved is called in Redis.
        recorded: what it recorded of the run's steps.

    Attributes:
        sending: contents that a push is uploading: what needs them is not accepted yet.
        recording: the same of a record that a push will commit.
        sequence: the number of the last message before those that the record waits for; 0 without a record.
        is_recorded: the run has a record.
        pending: the results of steps that no commit has recorded yet.
    """

    def __init__(self, state_key: bytes, recorded: Recorded = Recorded()) -> None:  # noqa: B008 # it never changes
        self.state_key = state_key
        self.sending: Collection[bytes] = ()
        self.recording: Collection[bytes] = ()
        self.is_recorded = bool(recorded.fields)
        self.sequence = decode_head(recorded.fields[HEAD]).sequence if HEAD in recorded.fields else 0
        self.pending = Pending()
        self._recorded = recorded

    def others(self, contents: Iterable[bytes], state: EncodedContent | None, recorded: Recorded | None) -> list[bytes]:
        """Return those of ``contents`` that nothing here needs once these are saved; None for what stays as it is."""
        saved = state.key if state is not None else self.state_key
        steps = recorded.contents if recorded is not None else self._recorded.contents
        kept = (self.sending, self.recording, self.pending.contents, steps)
        return [each for each in contents if each != saved and not any(each in some for some in kept)]

    def save(self, state: EncodedContent | None, recorded: Recorded | None) -> None:
        """A commit has saved these; None for what stays as it is."""
        if state is not None:
            self.state_key = state.key
        if recorded is not None:
            self._recorded, self.is_recorded = recorded, bool(recorded.fields)
            self.pending.saved(recorded)

    def next_record(self) -> Recorded | None:
        """Return the record with the results that no commit has recorded yet; None if there are none."""
        return self.pending.after(self._recorded)
