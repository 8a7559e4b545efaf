"""Text of others on a terminal. Owns which characters are shown as they are; must not know who wrote them."""


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
