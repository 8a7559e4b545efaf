"""The book: the messages of one run that are not settled yet, and the counts of them.

Only this package decides what happens to a message: `state` has the table, `message` what each step does to a message,
`index` finds messages, `book` plans what commits do to them, and `answers` handles their replies.

A message is *accepted* when the transaction of its push was executed. It is *sent* when it is in its node's inbox. It
is *answered* when the first matching reply was read from the outbox, or when a verdict made an Error its reply. It is
*handed over* when the app has that reply for good: the call that waited returned it, or its iterator went past it. It
is *settled* when a commit took it out of the book; then its reply leaves Redis. These five words mean these five
moments everywhere: in code, documentation and log.

After a resume, unsettled messages are *orphans* until the app pushes the same message again or waits for its id, and so
*adopts* it. Nobody waits for an orphan, so no verdict is passed on it.

Nothing here does I/O, starts a thread, or knows Redis. One lock guards everything, and the cursors and lists of
`receive`: `Book.lock`. No thread holds it while waiting for anything else. Methods whose names begin with an
underscore are called with it held.
"""

from brokerfl.server.book.answers import Answers, Wanted
from brokerfl.server.book.book import Applied, Book
from brokerfl.server.book.message import Event, OpenMessage
from brokerfl.server.book.plan import Sending
from brokerfl.server.book.state import State, Step

__all__ = ["Answers", "Applied", "Book", "Event", "OpenMessage", "Sending", "State", "Step", "Wanted"]
