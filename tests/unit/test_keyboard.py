"""Keys: what a terminal sends, as names of keys."""

import pytest

from brokerfl.cli.keyboard import keys_in


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]), (b"jk?", ["j", "k", "?"]), (b"\r", ["enter"]), (b"\x1b", ["escape"]),
        (b"\x1b[A\x1bOB", ["up", "down"]), (b"\x1b[5~q", ["q"]), (b"\x1b[1;5Cx", ["x"]), (b"\x1b[", []),
        (b"\x1b\x1b", ["escape", "escape"]), (b"\xc3", ["�"]),
    ],
)  # fmt: skip
def test_keys(data: bytes, keys: list[str]) -> None:
    """Arrows of both kinds, several keys at once; sequences of other keys are no keys."""
    assert keys_in(data) == keys
