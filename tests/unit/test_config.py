"""The grammar of --run-config, --node-config and --label."""

from pathlib import Path

import pytest

from brokerfl.cli.configs import parse_config, parse_labels
from brokerfl.common import ConfigError, ConfigScalar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("partition-id=0 num-partitions=5", {"partition-id": 0, "num-partitions": 5}),
        ("lr=0.1 momentum=1e-3 big=18446744073709551615", {"lr": 0.1, "momentum": 1e-3, "big": 2**64 - 1}),
        ("on=true off=false", {"on": True, "off": False}),
        ("a=\"two words\" b='one two'", {"a": "two words", "b": "one two"}),
        ("site=berlin path=data/part-1.csv", {"site": "berlin", "path": "data/part-1.csv"}),
        ("a.b=1", {"a.b": 1}),
        ("  ", {}),
        ('empty=""', {"empty": ""}),
        ("a=1 a=2", {"a": 2}),
        ('"a.b"=1 \'c.d\'=2 e."f.g".h=3', {"a.b": 1, "c.d": 2, "e.f.g.h": 3}),
        ("\"two words\"=1 'x=y'=2", {"two words": 1, "x=y": 2}),
        ("gr\u00f6\u00dfe=1 a/b=2", {"gr\u00f6\u00dfe": 1, "a/b": 2}),
        ('text=\'"quoted"\' other="it\'s"', {"text": '"quoted"', "other": "it's"}),
        (r"""tab="a\tb" raw='a\tb'""", {"tab": "a\tb", "raw": r"a\tb"}),
    ],
)
def test_pairs_are_typed(text: str, expected: dict[str, object]) -> None:
    """Booleans, numbers and strings keep their types; single words need no quotes; a later pair wins."""
    found = parse_config([text], "--run-config")
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    "text",
    [
        "partition-id",
        "=1",
        "a=",
        "a=[1,2]",
        "a={b=1}",
        "a=1979-05-27",
        'a="open',
        "a=1 b",
        'a="x"y',
        "a==1",
        "a=-",
        'a"b"=1',
        '"a"b=1',
        '"a=1',
    ],
)
def test_what_cannot_be_read_is_named(text: str) -> None:
    """A text that is no list of pairs is refused with the option's name and how to write it."""
    with pytest.raises(ConfigError, match="--node-config"):
        parse_config([text], "--node-config")


@pytest.mark.parametrize(
    ("text", "default", "why"),
    [
        ("last=False", "", "write last=false, or last='\"False\"' for a string"),
        ("last=TRUE", True, "write last=true"),
        ("rounds=abc", 3, "rounds is 'abc': it must be a number, like the default 3"),
        ("last=yes", True, "last is 'yes': it must be a boolean, like the default true"),
    ],
)
def test_a_word_that_was_meant_to_be_something_else_is_named(text: str, default: ConfigScalar, why: str) -> None:
    """A string that nobody wanted is true, whatever it says."""
    key = text.partition("=")[0]
    with pytest.raises(ConfigError, match=why):
        parse_config([text], "--run-config", {key: default})
    word = text.partition("=")[2]
    assert parse_config([f'{key}="{word}"'], "--run-config", {key: default}) == {key: word}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("seed=18446744073709551616", r"seed is 18446744073709551616, but only integers from .* can be sent"),
        ("seed=-9223372036854775809", r"seed is -9223372036854775809, but only integers from .* can be sent"),
        ("site='\udcff'", r"'site': '\\udcff' is not UTF-8"),
        ("s\udcff=1", r"'s\\udcff': 1 is not UTF-8"),
    ],
)
def test_what_cannot_be_sent_is_named(text: str, why: str) -> None:
    """A number too large, and bytes of a shell that are no UTF-8, are refused before a run begins."""
    with pytest.raises(ConfigError, match=f"--run-config: {why}"):
        parse_config([text], "--run-config")


def test_several_options_add_up() -> None:
    """An option given twice adds its pairs."""
    assert parse_config(["a=1", "b=2 a=3"], "--run-config") == {"a": 3, "b": 2}


def test_labels_are_text() -> None:
    """A label's value is text as it stands; without = or key it is refused."""
    assert parse_labels(["site=berlin", "gpu=1", "note=a=b"]) == {"site": "berlin", "gpu": "1", "note": "a=b"}
    for bad in ("site", "=x"):
        with pytest.raises(ConfigError, match="site=berlin"):
            parse_labels([bad])


def test_a_toml_file_is_a_config(tmp_path: Path) -> None:
    """As in Flower: the name of a TOML file stands for its values, by names with dots; what is typed later wins."""
    file = tmp_path / "run.toml"
    file.write_text("rounds = 3\n[train]\nlr = 0.5\n")
    assert parse_config([str(file), "rounds=4"], "--run-config") == {"rounds": 4, "train.lr": 0.5}
    file.write_bytes(b"\xef\xbb\xbfrounds = 5\n")  # as an editor on Windows writes it
    assert parse_config([str(file)], "--run-config") == {"rounds": 5}
    for other in ("utf-16", "latin-1"):
        file.write_text("name = 'gr\u00f6\u00dfe'\n", encoding=other)
        with pytest.raises(ConfigError, match=r"run.toml cannot be read: it is not UTF-8, .*: save it as UTF-8"):
            parse_config([str(file)], "--run-config")
    with pytest.raises(ConfigError, match=r"nowhere.toml cannot be read"):
        parse_config([str(tmp_path / "nowhere.toml")], "--run-config")
    assert parse_config(["file=a.toml"], "--run-config") == {"file": "a.toml"}
