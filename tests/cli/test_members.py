"""Logins of one's own, from nothing: three sites and two owners of runs on one Redis, by the commands of the docs."""

import json
import os
import re
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from click.testing import CliRunner

from brokerfl.broker.embedded import EmbeddedServer, free_port
from brokerfl.broker.keys import Keys
from brokerfl.broker.rules import Role
from brokerfl.cli import exits
from brokerfl.cli.login import read_login
from brokerfl.cli.main import main as brokerfl
from brokerfl.cli.secure import enter, secure
from brokerfl.common import CredentialsError
from tests.apps import eventually
from tests.cli.conftest import CLIENT, DEADLINE, NEVER, SERVER, Commands, Process, error_of, gated, node_id, run_id

DIGITS = Path(__file__).parents[2] / "examples" / "digits"

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("valkey_url")]


@dataclass
class Consortium:
    """A secured server, and a directory for each party: only what is sent goes from one to another."""

    commands: Commands
    folder: Path
    binary: Path | None
    port: int = field(default_factory=free_port)
    up: Process | None = None
    here: EmbeddedServer | None = None
    apps: Path | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def operator(self) -> tuple[str, str]:
        return "--credentials", str(self.data / "operator.credentials")

    @property
    def tls(self) -> dict[str, Any]:
        return {"ssl": True, "ssl_ca_certs": str(self.data / "tls/ca.crt")} if self.binary else {}

    def start(self) -> None:
        """Start the server by its command, again on the same port and directory."""
        options = ("--server", str(self.binary), "--host", "localhost") if self.binary else ()
        self.up = self.commands.start(
            "brokerfl", "up", "--secure", "--data", str(self.data), "--port", str(self.port), *options
        )
        self.up.wait_for("is up at")

    def start_here(self) -> None:
        """The same in this process."""
        secured = secure(self.data, "brokerfl", self.port, (), None, None, tls=self.binary is not None, names=True)
        self.here = EmbeddedServer(self.port, self.data, self.binary, secured.options, secured.tls)
        self.here.start()
        enter(secured)

    def restart(self) -> None:
        """Stop the server, which loses what it knows only by heart, and start it."""
        assert self.up is not None
        self.up.send(signal.SIGTERM)
        self.up.ends(0)
        self.start()

    def admin(self) -> redis_py.Redis:
        """A client with the operator's login."""
        user, password = "brokerfl:operator:operator", secret_of(self.data / "operator.credentials")["passwords"][-1]
        return redis_py.Redis(host="localhost", port=self.port, username=user, password=password, **self.tls)

    def site(self, name: str) -> Path:
        """The directory of a party, with the apps."""
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            (folder / "client.py").write_text(CLIENT)
            (folder / "server.py").write_text(SERVER)
        return folder

    def join(self, role: str, name: str, *options: str, sends: str = "request") -> str:
        """A party asks, an operator adds it, and the answer comes back; nothing else is sent. Return what was said."""
        site, mail = self.site(name), self.folder / "mail"
        mail.mkdir(exist_ok=True)
        ran(role, sends, name, "--dir", str(site))
        (site / f"{name}.request").rename(mail / f"{name}.request")
        said = ran(role, "add", str(mail / f"{name}.request"), *self.operator, *options)
        (mail / f"{name}.grant").rename(site / f"{name}.grant")
        return said

    def credentials(self, name: str) -> tuple[str, str]:
        return "--credentials", str(self.site(name) / f"{name}.credentials")

    def node(self, name: str, *options: str) -> Process:
        node = self.commands.start(
            "brokerfl-node", "client:app", "--app-dir", self.folder_of(name), *self.credentials(name), *options
        )
        node.wait_for(r"Node \d+ .*serves client:app")
        return node

    def server(self, name: str, *options: str) -> Process:
        return self.commands.start(
            "brokerfl-server", "server:app", "--app-dir", self.folder_of(name), *self.credentials(name), *options
        )

    def folder_of(self, name: str) -> str:
        """Where a party has its apps."""
        return str(self.apps or self.site(name))

    def thief(self, name: str) -> redis_py.Redis:
        """A client of somebody who has stolen the credentials of a node."""
        password = secret_of(self.site(name) / f"{name}.credentials")["passwords"][-1]
        return redis_py.Redis(port=self.port, username=f"brokerfl:node:{name}", password=password, **self.tls)

    def listed(self, role: str) -> list[dict[str, Any]]:
        rows = json.loads(ran(role, "list", "--format", "json", *self.operator))
        assert isinstance(rows, list)
        return rows


def secret_of(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def ran(*arguments: str) -> str:
    """What `brokerfl` prints when it is run with these arguments: in this process, which saves a second each time."""
    result = CliRunner().invoke(brokerfl, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str, code: int) -> str:
    """The one line of an error."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exits, "say", said.append)  # the log of this process has another standard error
        result = CliRunner().invoke(brokerfl, arguments)
    assert result.exit_code == code, (said, result.output)
    [line] = [line for line in said if line.startswith("Error: ")]
    return line


@pytest.fixture
def consortium(commands: Commands, tmp_path: Path, redis_binary: Path) -> Iterator[Consortium]:
    """Debian's redis-server with TLS, by its command."""
    made = Consortium(commands, tmp_path, redis_binary)
    made.start()
    yield made
    commands.kill()


@pytest.fixture
def plain(commands: Commands, tmp_path: Path) -> Iterator[Consortium]:
    """The bundled Valkey, which has no TLS."""
    made = Consortium(commands, tmp_path, None)
    made.start_here()
    yield made
    commands.kill()
    assert made.here is not None
    made.here.stop()


def test_a_consortium_from_nothing(consortium: Consortium, commands: Commands) -> None:
    """Three sites serve the runs of two owners; one is revoked while it trains, and stays out over a restart.

    Its message is Error 5 although its lease and the grace for nodes that are offline are longer than the test waits.
    The others go on. Nothing that anybody did was refused.
    """
    with pytest.raises(redis_py.RedisError), redis_py.Redis(port=consortium.port, ssl=True) as who:
        who.ping()
    for owner in ("alice", "bob"):
        consortium.join("server", owner)
    for name in ("n1", "n2", "n3"):
        assert "it trusts alice, bob" in consortium.join("node", name)
    gate = consortium.folder / "gate"
    nodes = {name: consortium.node(name) for name in ("n1", "n2")}
    nodes["n3"] = consortium.node("n3", "--lease", NEVER, *gated(gate))
    bob = consortium.server("bob", "--run-config", "nodes=3 rounds=2")
    gate.touch()
    bob.wait_for("Round 2: 3 of 3 replied")
    bob.ends(0)
    gate.unlink()
    alice = consortium.server("alice", "--offline-grace", NEVER, "--run-config", "nodes=3 rounds=2")
    nodes["n3"].wait_for(r"(?s)(Training begins.*){3}")
    ran("node", "revoke", "n3", *consortium.operator)
    alice.wait_for(rf"Round 1: Error 5 of {node_id(nodes['n3'])}")
    alice.wait_for(r"Round 1: 2 of 3 replied")
    alice.wait_for(rf"Round 2: Error 5 of {node_id(nodes['n3'])}|Round 2: 2 of")
    alice.ends(0)
    realms = {row["name"]: row["realm"] for row in consortium.listed("server")}
    assert [run_id(each)[:4] for each in (alice, bob)] == [realms["alice"], realms["bob"]]
    assert [row["name"] for row in consortium.listed("node")] == ["n1", "n2"]
    with consortium.admin() as admin:
        assert not [key for key in admin.acl_users() if "n3" in key]
        own = [entry for entry in admin.acl_log() if entry["username"] != "brokerfl:node:n3"]
        assert [entry for entry in own if entry["reason"] != "auth"] == []
    consortium.restart()
    nodes["n3"].kill()
    out = consortium.commands.start(
        "brokerfl-node", "client:app", "--app-dir", str(consortium.site("n3")), *consortium.credentials("n3")
    )
    assert "refuses the login" in error_of(out.ends(11))
    again = consortium.server("alice", "--run-config", "nodes=2")
    again.wait_for("Round 1: 2 of 2 replied")
    again.ends(0)


def test_no_secret_is_sent(plain: Consortium) -> None:
    """What goes by mail, and what Redis keeps of members, has neither a password nor a private key."""
    plain.join("server", "alice")
    plain.join("node", "n1")
    for name in ("alice", "n1"):
        secret = secret_of(plain.site(name) / f"{name}.credentials")
        mail = plain.folder / "mail" / f"{name}.request", plain.site(name) / f"{name}.grant"
        sent = "".join(path.read_text() for path in mail)
        with plain.admin() as admin:
            kept = repr(admin.hgetall("brokerfl:members"))
        for each in (*secret["passwords"], secret["signing"], secret["sealing"]):
            assert len(each) >= 43  # 256 bits
            assert each not in sent + kept
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (plain.data, *plain.data.rglob("*"))}
    grants = {name: mode for name, mode in modes.items() if mode & 0o077}
    assert set(grants) == {"operator.grant"}


def test_both_sides_see_the_same_fingerprints(plain: Consortium) -> None:
    """The site and the operator, who may talk on the phone, are told the same digits, those of sha256sum."""
    site = plain.site("n1")
    asked = ran("node", "request", "n1", "--dir", str(site), "--label", "city=berlin")
    added = ran("node", "add", str(site / "n1.request"), *plain.operator)
    digits = re.findall(r"ingerprint\b.*?: ((?:[0-9a-f]{4} ?){8})", asked + added)
    assert len(digits) == 3
    assert digits[0] == digits[1] != digits[2]
    [row] = json.loads(ran("nodes", "--format", "json", *plain.operator))
    assert (row["name"], row["labels"]) == ("n1", {"city": "berlin"})
    assert "no server yet" in added


def test_a_password_changes_without_a_gap(plain: Consortium) -> None:
    """A node goes on with the former password until an operator added the new one, and then with that, unattended."""
    plain.join("server", "alice")
    plain.join("node", "n1")
    node = plain.node("n1")
    end = plain.folder / "end"
    run = plain.server("alice", "--run-config", f"nodes=1 until='{end}'")

    def cut() -> None:
        """Everybody has to log in again; the run goes on."""
        with plain.admin() as admin:
            admin.client_kill_filter(_type="normal", skipme=True)
        last = run.text.count("1 of 1 replied")
        eventually(lambda: run.text.count("1 of 1 replied") > last + 3 or not run.is_running, DEADLINE)

    former = secret_of(plain.site("n1") / "n1.credentials")["passwords"]
    ran("node", "rotate", "n1", "--dir", str(plain.site("n1")))
    cut()
    mail = plain.site("n1") / "n1.request"
    assert "second password" in ran("node", "add", str(mail), *plain.operator)
    assert [row["passwords"] for row in plain.listed("node")] == [2]
    cut()
    ran("node", "rotate", "n1", "--finish", *plain.operator)
    cut()
    [user] = [row["user"] for row in plain.listed("node")]
    with plain.admin() as admin:
        assert len(admin.acl_getuser(user)["passwords"]) == 1
    thief = redis_py.Redis(port=plain.port, username=user, password=former[0])
    with thief, pytest.raises(redis_py.AuthenticationError):
        thief.ping()
    end.touch()
    run.ends(0)
    assert "Error" not in run.text
    assert node.is_running


def test_a_name_cannot_be_taken(plain: Consortium, tmp_path: Path) -> None:
    """Only who has the keys of a member gets a second password for it; a request that was changed is refused."""
    plain.join("node", "n1")
    thief = tmp_path / "thief"
    thief.mkdir()
    ran("node", "request", "n1", "--dir", str(thief))
    error = refused("node", "add", str(thief / "n1.request"), *plain.operator, code=17)
    assert "there is a node n1 with other keys" in error
    mail = plain.folder / "mail" / "n1.request"
    asked = json.loads(mail.read_text())
    mail.write_text(json.dumps({**asked, "password": "0" * 64}))
    error = refused("node", "add", str(mail), *plain.operator, code=17)
    assert "was changed" in error
    error = refused("server", "add", str(mail), *plain.operator, code=17)
    assert "is of a node: brokerfl node add" in error
    assert [row["passwords"] for row in plain.listed("node")] == [1]


def test_a_node_trusts_whom_it_is_told(plain: Consortium) -> None:
    """--trust names owners, and can be changed; a node that trusts nobody has rights to no run."""
    assert "trusts no server yet" in plain.join("node", "n0")
    for owner in ("alice", "bob"):
        plain.join("server", owner)
    assert "it trusts bob." in plain.join("node", "n1", "--trust", "bob")
    realms = {row["name"]: row["realm"] for row in plain.listed("server")}
    rights = {name: _patterns(plain, f"brokerfl:node:{name}") for name in ("n0", "n1")}
    assert not [key for key in rights["n0"] for realm in realms.values() if f"run:{realm}" in key]
    assert any(f"run:{realms['bob']}" in key for key in rights["n1"])
    assert not any(f"run:{realms['alice']}" in key or "run:[" in key for key in rights["n1"] | rights["n0"])
    grant = json.loads(ran("node", "grant", "n1", "--trust", "alice", *plain.operator))
    assert [owner["name"] for owner in grant["owners"]] == ["alice"]
    assert any(f"run:{realms['alice']}" in key for key in _patterns(plain, "brokerfl:node:n1"))
    error = refused("node", "grant", "n1", "--trust", "eve", *plain.operator, code=2)
    assert "--trust eve: no server is called so (alice, bob)" in error


def test_a_realm_is_never_given_twice(plain: Consortium) -> None:
    """A server that was revoked leaves its realm, in which its runs are; who takes its name, gets them."""
    plain.join("server", "alice")
    plain.join("node", "n1")
    ran("server", "revoke", "alice", *plain.operator)
    [row] = plain.listed("server")
    assert (row["name"], row["passwords"]) == ("alice", 0)
    assert "there is no server alice" in refused("server", "grant", "alice", *plain.operator, code=23)
    assert "trusts no server yet" in plain.join("node", "n2")
    (plain.site("alice") / "alice.credentials").unlink()
    plain.join("server", "alice")
    [again] = plain.listed("server")
    assert (again["realm"], again["passwords"]) == (row["realm"], 1)


def _patterns(consortium: Consortium, user: str) -> set[str]:
    with consortium.admin() as admin:
        found = admin.execute_command("ACL", "GETUSER", user)
    return set(re.findall(r"~([^ '\"]+)", repr(found)))


def test_files_that_others_could_use(plain: Consortium, commands: Commands) -> None:
    """Each is refused with 17 and a line that names the file, before anything is sent."""
    plain.join("node", "n1")
    plain.join("server", "alice")
    site = plain.site("n1")
    credentials, grant = site / "n1.credentials", site / "n1.grant"
    link = site / "link.credentials"
    link.symlink_to(credentials)
    (site / "link.grant").write_text(grant.read_text())

    def use(path: Path, name: str | None) -> None:
        login = read_login(path)
        login.check_role(Role.NODE)
        login.check_node(name)

    def error(path: Path = credentials, name: str | None = None) -> str:
        with pytest.raises(CredentialsError) as caught:
            use(path, name)
        return str(caught.value)

    assert "is a symbolic link" in error(link)
    credentials.chmod(0o640)
    assert f"{credentials} can be used by other users (its mode is 0640): chmod 600" in error()
    assert "can be used by other users" in refused("runs", "--credentials", str(credentials), code=17)
    credentials.chmod(0o600)
    grant.chmod(0o666)
    assert f"{grant} can be used by other users" in error()
    grant.chmod(0o644)
    assert "leave --name n2 out" in error(credentials, "n2")
    alice = plain.site("alice") / "alice.credentials"
    assert "is of the server alice, not of a node" in error(alice)
    grant.write_text((plain.site("alice") / "alice.grant").read_text())
    assert "is of the node n1, but the grant beside it of the server alice" in error()
    grant.unlink()
    assert f"there is no {grant}: send n1.request to an operator" in error()
    credentials.write_text("{}")
    assert f"{credentials} is no credentials file of brokerfl" in error()
    for command in ("brokerfl-node", "brokerfl-server"):
        process = commands.start(command, "client:app", "--credentials", str(credentials))
        assert f"{credentials} is no credentials file of brokerfl" in error_of(process.ends(17))


def test_only_operators_add(plain: Consortium) -> None:
    """Nobody else has the rights, or is asked to sign; an observer looks, and does nothing."""
    plain.join("observer", "eye")
    plain.join("node", "n1")
    request = plain.folder / "mail" / "n1.request"
    assert "the credentials of an operator" in refused("node", "add", str(request), code=17)
    eye = plain.credentials("eye")
    assert "n1" in ran("nodes", *eye)
    assert "is of the observer eye" in refused("node", "revoke", "n1", *eye, code=17)
    assert "denies a permission" in refused("nodes", "forget", "n1", *eye, code=11)
    assert "there is no node nobody" in refused("node", "grant", "nobody", *plain.operator, code=23)


def test_a_second_operator_can_do_without_the_first(plain: Consortium) -> None:
    """An operator adds another one, who revokes the first; a revoked operator stays out after a restart."""
    plain.join("operator", "second")
    second = plain.credentials("second")
    ran("operator", "revoke", "operator", *second)
    assert "refuses the login" in refused("node", "list", *plain.operator, code=11)
    assert "second" in ran("operator", "list", *second)
    assert plain.here is not None
    plain.here.stop()
    plain.start_here()
    assert "refuses the login" in refused("node", "list", *plain.operator, code=11)
    assert "second" in ran("operator", "list", *second)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--secure",), "--secure needs --data DIR"),
        (("--host", "localhost"), "need --secure"),
        (("--secure", "--data", "data", "--host", "localhost"), "the bundled server has no TLS"),
        (("--secure", "--data", "data", "--cert", __file__), "--cert and --key belong together"),
    ],
)
def test_what_up_needs(commands: Commands, options: tuple[str, ...], why: str) -> None:
    """What is missing is said before anything is made."""
    assert why in refused("up", *options, code=2)
    assert not (commands.folder / "data").exists()


LEAK = '''
"""Looks for a password wherever code of the same process can look, short of the broker's own memory."""

import os
import subprocess
from pathlib import Path

from brokerfl.client import ClientApp
from brokerfl.common import ConfigsRecord, Context, Message, RecordSet

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    places = {
        "environ": repr(dict(os.environ)),
        "proc": repr(Path("/proc/self/environ").read_bytes()),
        "cmdline": repr(Path("/proc/self/cmdline").read_bytes()),
        "child": subprocess.run(["env"], capture_output=True, text=True, check=True).stdout,
    }
    Path("places").write_text(repr(places))
    return message.create_reply(RecordSet())
'''


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_an_app_finds_no_password(commands: Commands, valkey_url: str) -> None:
    """Neither in the environment, nor in what the system shows of it, nor in that of a child."""
    commands.write("leak.py", LEAK)
    with redis_py.Redis.from_url(valkey_url) as admin:
        admin.flushall()
        admin.execute_command("ACL", "SETUSER", "fl", "on", ">hunter2", "~*", "&*", "+@all")
        commands.env["BROKERFL_REDIS_URL"] = valkey_url.replace("//", "//fl:hunter2@")
        node = commands.start("brokerfl-node", "leak:app")
        node.wait_for("serves leak:app")
        commands.run("brokerfl-server", "server:app", "--run-config", "nodes=1")
        places = (commands.folder / "places").read_text()
        assert "BROKERFL_STATE_DIR" in places  # it did look
        assert "hunter2" not in places
        assert "hunter2" in commands.env["BROKERFL_REDIS_URL"]
        typed = commands.start("brokerfl", "runs", "--redis", commands.env["BROKERFL_REDIS_URL"])
        untyped = commands.start("brokerfl", "runs")
        assert "Every user of this machine can read the password in --redis" in typed.ends(0).err
        assert "Every user" not in untyped.ends(0).err
        commands.kill()
        admin.execute_command("ACL", "DELUSER", "fl")
        admin.flushall()


def test_the_files_are_those_of_one_user(tmp_path: Path) -> None:
    """Whatever the umask, credentials are 0600, and nothing that is there is overwritten."""
    former = os.umask(0)
    try:
        ran("node", "request", "n1", "--dir", str(tmp_path))
    finally:
        os.umask(former)
    file = tmp_path / "n1.credentials"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_text()
    error = refused("node", "request", "n1", "--dir", str(tmp_path), code=17)
    assert f"{file} is there already: nothing was changed" in error
    assert file.read_text() == content
    for name in ("", "../n1", "a b", ".n1", "n" * 65):
        assert "cannot be used" in refused("node", "request", name, code=17)


def test_a_stolen_credential_harms_only_its_own_site(plain: Consortium) -> None:
    """Three sites train digits for two owners, sealed, and one is robbed: whatever the thief tries is refused.

    The revocation ends its open connection, and the others go on. What is not sealed is refused by all. An owner sees
    its own runs, and no command of anybody else is refused anything.
    """
    pytest.importorskip("sklearn")
    plain.apps = DIGITS
    for owner in ("alice", "bob"):
        plain.join("server", owner)
    nodes = {}
    for number, name in enumerate(("n1", "n2", "n3")):
        plain.join("node", name)
        data = f"partition-id={number} num-partitions=3"
        nodes[name] = plain.node(name, "--seal", "--node-config", data, "--audit", str(plain.folder / name / "audit"))
    config = "min-nodes=3 local-epochs=1 num-rounds"
    bob = plain.server("bob", "--seal", "--run-config", f"{config}=2")
    alice = plain.server("alice", "--seal", "--run-config", f"{config}=100000")
    bob.ends(0).wait_for("Round 2: .* from 3 nodes")
    alice.wait_for("Round 2: .* from 3 nodes")
    with plain.admin() as admin, plain.thief("n3") as thief:
        assert thief.ping()
        for attack in attacks(run_id(alice), node_id(nodes["n1"])):
            with pytest.raises(redis_py.exceptions.NoPermissionError):
                thief.execute_command(*attack.split(" "))
        seen = ran("runs", "--format", "json", *plain.credentials("alice"))
        assert [row["run"] for row in json.loads(seen)] == [run_id(alice)]
        for name in ("alice", "n1"):
            ran("doctor", *plain.credentials(name))
        ran("node", "revoke", "n3", *plain.operator)
        with pytest.raises((redis_py.AuthenticationError, redis_py.ConnectionError)):
            thief.ping()
        alice.wait_for("Round [0-9]+: .* from 2 nodes")
        nodes["n3"].ends(11)
        alice.send(signal.SIGTERM)
        alice.ends(143)
        refused = {entry["username"] for entry in admin.acl_log() if entry["reason"] != "auth"}
        assert refused == {"brokerfl:node:n3"}
    replies = [json.loads(line) for line in (plain.folder / "n1" / "audit").read_text().splitlines()]
    assert {reply["outcome"] for reply in replies} == {"reply"}
    assert {reply["run"] for reply in replies} == {run_id(alice), run_id(bob)}
    clear = plain.server("bob", "--sign", "--run-config", "num-rounds=1 min-nodes=2").ends(5)
    assert "serves only sealed ones" in clear.text


def attacks(run: str, node: str) -> list[str]:
    """What a thief tries with the keys of a node and of a run that are not its own, and with the whole server."""
    keys = Keys("brokerfl", ("", run[:4]))
    mine, stream = (keys.inbox(int(node), int(run)), keys.outbox(int(node), int(run))), "* h forged"
    return [
        *(f"XRANGE {key} - +" for key in mine),
        *(f"XADD {key} {stream}" for key in mine),
        *(f"XADD {key} 18446744073709551615-18446744073709551615 h x" for key in mine),
        *(f"XTRIM {key} MAXLEN 0" for key in mine),
        f"XADD {keys.ctl(int(node), run[:4])} {stream}",
        f"SET {keys.node_lease(int(node))} stolen",
        f"HSET {keys.node_info(int(node))} name n3",
        f"HSET {keys.node_runs(int(node), run[:4])} {run} forged",
        f"HGETALL {keys.node_runs(int(node), run[:4])}",
        f"HGETALL {keys.ledger(int(run))}",
        f"HGETALL {keys.context(int(run))}",
        f"UNLINK {keys.meta(int(run))}",
        f"SET {keys.owner(int(run))} stolen",
        f"SADD {keys.nodes} 5",
        f"SREM {keys.nodes} {node}",
        f"SET {keys.identity} another",
        f"HGETALL {keys.members}",
        *("EVAL return(1) 0", "FLUSHALL", "MONITOR", "CONFIG GET *", "ACL LIST", "CLIENT LIST", "KEYS *", "SHUTDOWN"),
        "ACL SETUSER brokerfl:node:n3 +@all",
        "CLIENT KILL USER brokerfl:node:n1",
    ]
