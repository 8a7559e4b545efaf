"""The rules: every command that the code sends has one, every key has a name in them, and the documentation says so."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from inspect import signature
from pathlib import Path

import pytest
from redis.commands.core import CoreCommands

from brokerfl.broker.keys import Keys
from brokerfl.broker.permissions import SAMPLES
from brokerfl.broker.rules import COMMON, RIGHTS, WITHOUT_KEYS, Role, acl_of, mode_of, patterns
from brokerfl.common import ConfigError

ROOT = Path(__file__).parent.parent.parent

KEYS = Keys("fl")

ALLOWED = {*COMMON, *(name for names in WITHOUT_KEYS.values() for name in names), *SAMPLES}

#: What is found and is no command: options of commands, an error code, methods of brokerfl and of hashlib.
NO_COMMANDS = {"block", "streams", "nomkstream", "nogroup", "execute_command", "client_setname", "digest"}

#: What the code sends to Sentinels, to a server of which nothing is known, and what is in each row that needs it.
ELSEWHERE = {"sentinel|get-master-addr-by-name", "sentinel|replicas", "client|setinfo", "select", "watch"}

#: Methods of redis-py that are also those of dicts, sets, files and threads.
AMBIGUOUS = {
    "append", "copy", "get", "set", "keys", "type", "time", "wait", "exists", "info", "expire", "delete", "move",
    "sort", "save", "shutdown", "select", "failover", "reset", "restore", "role",
}  # fmt: skip

#: What a method of redis-py sends, where it is called otherwise.
CALLED = {
    "xgroup_create": "xgroup|create", "xpending_range": "xpending", "config_get": "config|get", "memory_usage":
    "memory|usage", "xinfo_stream": "xinfo|stream", "zrangebyscore": "zrangebyscore",
}  # fmt: skip


def sent_by(path: Path) -> Iterator[str]:
    """Yield the commands that a module sends: methods of redis-py, and tuples that begin with a command."""
    methods = {name for name in dir(CoreCommands) if not name.startswith("_")} - AMBIGUOUS
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in methods:
            yield CALLED.get(node.attr, node.attr)
        if isinstance(node, ast.Tuple) and node.elts:
            words = [each.value for each in node.elts[:2] if isinstance(each, ast.Constant)]
            if words and isinstance(words[0], str) and re.fullmatch("[A-Z]{3,}", words[0]):
                both = f"{words[0]}|{words[-1]}".lower()
                yield both if both in ALLOWED | ELSEWHERE else words[0].lower()


def test_every_command_that_the_code_sends_has_a_rule() -> None:
    """Else whoever has the rights of a role would be refused; and every command that has a rule is sent."""
    modules = [path for path in (ROOT / "brokerfl").glob("broker/*.py") if path.name != "failure.py"]  # has error codes
    sent = {name: path.name for path in modules for name in sent_by(path)}
    assert {name: module for name, module in sent.items() if name not in ALLOWED | ELSEWHERE | NO_COMMANDS} == {}
    assert SAMPLES.keys() - sent.keys() - AMBIGUOUS == set()


def test_every_right_is_of_a_command_that_can_be_asked_for() -> None:
    """The attacks and `brokerfl doctor` try them all."""
    assert {command for right in RIGHTS for command in right.commands} == SAMPLES.keys()
    assert all(right.why and right.keys for right in RIGHTS)


def test_every_key_has_a_rule() -> None:
    """What `Keys` returns is one of the keys of the rules, with its own names in the places of N, R, c and D."""
    arguments = {"node_id": 5, "run_id": 7, "chunk": bytes(40), "realm": ""}
    made: list[str] = []
    for name, value in vars(Keys).items():
        if name.startswith("_") or name in ("prefix", "realms", "realm_of"):
            continue
        found = getattr(KEYS, name)
        if callable(value):
            found = found(*(arguments[each] for each in signature(value).parameters if each != "self"))
        made += [found] if isinstance(found, str) else found
    known = {pattern for right in RIGHTS for key in right.keys for pattern in patterns(key, KEYS)}
    assert [key for key in made if not any(fnmatchcase(key, pattern) for pattern in known)] == []
    assert len({*made}) > 20


def test_the_commands_say_what_they_do_to_a_key() -> None:
    """A role that only reads a key may not write it with a command of another row, and the other way round."""
    assert mode_of(["get"]) == mode_of(["exists"]) == "%R"
    assert mode_of(["xadd", "watch"]) == "%W"
    assert mode_of(["xadd", "xrange"]) == "%RW"


def test_what_no_rule_may_ever_allow() -> None:
    """What a role may do to what is not its own, written a second time: a row that allows more is no slip."""
    shared: dict[tuple[Role, str], set[str]] = {}
    for right in RIGHTS:
        for key in right.keys:
            if right.role is Role.OBSERVER or not OWN.get(right.role, re.compile("")).search(key):
                shared.setdefault((right.role, key), set()).update(right.commands)
    writes = {command for command in SAMPLES if "W" in mode_of([command])}
    assert {key: commands for (role, key), commands in shared.items() if role is Role.NODE} == {
        "P:bell:{run:R}": {"xadd"},
        "P:blob:R:c:{D}": {"get"},
        "P:id": {"getrange"},
        "P:nodes": {"sismember"},
        "P:runs[:r]": {"zmscore"},
        "P:probe:{P:id}": {"pexpire"},
    }
    assert {key: commands & writes for (role, key), commands in shared.items() if role is Role.SERVER} == {
        "P:{N}:ctl[:r]": {"xadd"},
        "P:{N}:runs[:r]": {"hset", "hdel", "pexpire"},
        "P:{N}:info": set(),
        "P:{N}:lease": set(),
        "P:members": set(),
        "P:id": set(),
        "P:nodes": set(),
        "P:probe:{P:id}": {"pexpire"},
    }
    counts = {"memory|usage", "xlen", "strlen"}
    seen = {key: commands - counts for (role, key), commands in shared.items() if role is Role.OBSERVER}
    assert {key for key, commands in seen.items() if commands & writes} == {"P:probe:{P:id}"}
    contents = "context|ledger|in:N|out:N|data:R|P:blob|\\*"
    assert not [key for key, commands in seen.items() if commands and re.search(contents, key)]


#: The keys that are a role's own: of the node, of the runs of the realm, and what the realm alone has.
OWN = {
    Role.NODE: re.compile(r"\{N\}|:in:N|:out:N"),
    Role.SERVER: re.compile(r"^P:\{run:R\}|^P:bell|^P:blob|:data:R|^P:runs"),
}


def test_who_has_an_id_and_who_has_a_realm() -> None:
    """A mistake here would give rights to too many."""
    for realm in ("12", "0123", "12345", "12a4", "*", ""):
        with pytest.raises((ConfigError, ValueError)):
            acl_of(Role.NODE, KEYS, node_id=5, realms=(realm,))
    with pytest.raises(ValueError, match="a node has an id"):
        acl_of(Role.NODE, KEYS)
    with pytest.raises(ValueError, match="a node has an id"):
        acl_of(Role.SERVER, KEYS, node_id=5)
    with pytest.raises(ValueError, match="realm"):
        acl_of(Role.OBSERVER, KEYS, realm="1234")


def table() -> str:
    """The table of docs/security.md."""
    lines = ["| role | keys | commands | why |", "|---|---|---|---|"]
    for right in RIGHTS:
        commands = " ".join(f"`{name.replace('|', ' ').upper()}`" for name in right.commands)
        lines.append(f"| {right.role} | {' '.join(f'`{key}`' for key in right.keys)} | {commands} | {right.why} |")
    for role, names in {"all": COMMON, **WITHOUT_KEYS}.items():
        commands = " ".join(f"`{name.replace('|', ' ').upper()}`" for name in names)
        if names:
            lines.append(f"| {role} | | {commands} | have no key |")
    return "\n".join(lines)


def test_the_documentation_has_the_table() -> None:
    """If this fails, put what it expected into docs/security.md."""
    page = (ROOT / "docs/security.md").read_text()
    assert table() in page, f"docs/security.md lacks this table:\n{table()}"


def test_the_documentation_names_tests_that_there_are() -> None:
    """Each attack in docs/security.md has a test that tries it."""
    page = (ROOT / "docs/security.md").read_text()
    _, _, rows = page.partition("| who | attack |")
    attacks = rows.partition("\n\n")[0].splitlines()[2:]
    named = re.findall(r"`(\w+/test_\w+)::(test_\w+)`", page)
    assert all("::test_" in row for row in attacks)
    assert len(named) > len(attacks) > 20
    missing = [
        (path, name) for path, name in named if f"def {name}(" not in (ROOT / "tests" / f"{path}.py").read_text()
    ]
    assert missing == []
