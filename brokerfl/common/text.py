"""Text for people: what others wrote, ids that are too long to read, and sizes.

Owns which characters are shown as they are, how ids of runs, nodes and messages are cut, and how sizes are written. It
must not know who wrote them.
"""

#: How much of an id is shown: digits of a run's or a node's, hex digits of a message's, of which there are many more.
DIGITS, _HEX_DIGITS = 4, 8


def shown(text: str, keep: str = "") -> str:
    """Return a text in which everything that a terminal would obey is escaped as Python writes it.

    Args:
        text: whatever somebody else wrote.
        keep: control characters that stay, such as the line breaks of a traceback.
    """
    if text.isprintable():  # which no character is that breaks a line or turns the direction of what follows
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )


def short(whole: int | str, more: int = 0) -> str:
    """Return the id of a run or a node, or the hex id of a message, cut to what can be read: ``1141…``.

    Args:
        whole: a number, or hex digits.
        more: digits at its beginning that others have, too.
    """
    text, length = shown(str(whole)), more + (_HEX_DIGITS if isinstance(whole, str) else DIGITS)
    return text if len(text) <= length else f"{text[:length]}…"


def shown_node(node_id: int, name: str = "") -> str:
    """Return what a node is called in a table, a log line or an error: ``site-7 (6239…)``, or ``node 6239…``."""
    return f"{shown(name)} ({short(node_id)})" if name else f"node {short(node_id)}"


def sized(size: int) -> str:
    """Return a size in bytes: ``0``, ``512B``, ``64K``, ``1.5M``, ``399M``, in powers of 1024."""
    if size < 1024:
        return f"{size}B" if size else "0"
    value, units = size / 1024, "KMGTPE"
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return (f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}") + units[0]
