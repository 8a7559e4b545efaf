"""Words: how ids among others and durations are written. Owns that; must not know who reads them."""

from collections.abc import Iterable

from brokerfl.common.text import DIGITS


def short_among(number: int, others: Iterable[int]) -> str:
    """Return as much of an id as tells it from ``others``, at least four digits."""
    text, digits = str(number), DIGITS
    for other in map(str, others):
        while other != text and digits < len(text) and other.startswith(text[:digits]):
            digits += 1
    return text if len(text) <= digits else f"{text[:digits]}…"


def lasting(seconds: float) -> str:
    """Return a duration: ``0.4s``, ``31s``, ``11m48s``, ``3h05m``, ``2d04h``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}".removesuffix(".0") + "s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"
