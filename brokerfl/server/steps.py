"""What the log says of each step that a message takes, with --verbose.

Owns the words. It must not know what a step does.
"""

from brokerfl.common.logger import trace
from brokerfl.server.book import Event, Step

#: The event and the text of each step. Taking and yielding a reply are left out: handing it over follows at once.
_WORDS = {
    Step.ACCEPTED: ("accepted", "Accepted and sent, group %r"),
    Step.SENT: ("sent again", "Sent again"),
    Step.FOUND: ("found", "Redis has it after a lost connection"),
    Step.MISSED: ("lost", "Redis has lost it"),
    Step.ANSWERED: ("answered", "Answered"),
    Step.ADOPTED: ("adopted", "Adopted after a resume, group %r"),
    Step.DISOWNED: ("disowned", "Its push failed: it may be pushed again"),
    Step.PUT_BACK: ("put back", "The reply cannot be fetched now"),
    Step.REOPENED: ("reopened", "The content of the reply is gone: the node is asked again"),
    Step.HANDED_OVER: ("handed over", "The app has the reply"),
    Step.SETTLED: ("settled", "Settled"),
    Step.CANCELLED: ("cancelled", "Left behind or cancelled"),
}


def trace_step(run_id: int, event: Event) -> None:
    """Log a step."""
    words = _WORDS.get(event.step)
    if words is not None:
        name, text = words
        group = [event.group_id] if "%" in text else []
        trace(name, text, *group, run=run_id, node=event.node_id, message_id=event.message_id)
