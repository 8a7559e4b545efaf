"""The numbers of a run as other tools take them, from what ``brokerfl export RUN`` prints."""

import json
from collections.abc import Iterable, Iterator


def points(lines: Iterable[str]) -> Iterator[tuple[int, str, float]]:
    """Yield step, name and value of each number, in the order of the steps: some tools refuse to go back."""
    found: list[tuple[int, str, float]] = []
    for event in map(json.loads, lines):
        group = event.get("group", "")
        if event["kind"] in ("answered", "metrics") and group.isdecimal():
            prefix = f"{event['type']}/" if event["kind"] == "answered" else ""
            numbers = event.get("values", {}).items()
            found += [(int(group), f"{prefix}{name}", value) for name, value in numbers if value is not None]
    yield from sorted(found, key=lambda point: point[0])
