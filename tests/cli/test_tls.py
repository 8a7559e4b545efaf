"""TLS for real: a run over rediss:// with certificates on both sides, and what goes wrong with them."""

import pytest
import redis as redis_py

from tests.cli.conftest import Broker, Commands, error_of
from tests.conftest import PREFIX, Certificates, check_keys

pytestmark = pytest.mark.timeout(180)


def test_a_run_with_mutual_tls(commands: Commands, redis_tls_url: str, certificates: Certificates) -> None:
    """Two nodes and a ServerApp do a run over rediss://, with the files from options and from the environment."""
    files = {"ca_cert": certificates.ca, "cert": certificates.client_cert, "key": certificates.client_key}
    options = [part for name, path in files.items() for part in (f"--{name.replace('_', '-')}", path)]
    admin = redis_py.Redis.from_url(
        redis_tls_url, ssl_ca_certs=certificates.ca, ssl_certfile=files["cert"], ssl_keyfile=files["key"]
    )
    with admin:
        admin.flushall()
        commands.env["BROKERFL_PREFIX"] = PREFIX
        node = commands.node("--redis", redis_tls_url, *options)
        commands.env.update({f"BROKERFL_{name.upper()}": path for name, path in files.items()})
        commands.env["BROKERFL_REDIS_URL"] = redis_tls_url
        commands.node()
        server = commands.run("brokerfl-server", "server:app", "--run-config", "nodes=2 rounds=3")
        assert "Round 3: 2 of 2 replied" in server.text
        assert node.text.count("Training begins") == 3
        assert commands.run("brokerfl", "runs").out.startswith("no runs;")
        commands.kill()
        check_keys(admin)


def test_a_wrong_authority(commands: Commands, redis_tls_url: str, certificates: Certificates) -> None:
    """A server whose certificate another authority signed ends with 12 and one line that names --ca-cert."""
    ours = ("--cert", certificates.client_cert, "--key", certificates.client_key)
    for trusted in (("--ca-cert", certificates.other_ca), ()):
        commands.start("brokerfl-node", "client:app", "--redis", redis_tls_url, *trusted, *ours)
    for process in commands.started:
        assert error_of(process.ends(12)).startswith(
            f"Error: no TLS connection to {redis_tls_url}: the server's certificate is not trusted; check --ca-cert"
        )


def test_no_certificate_of_ours(commands: Commands, redis_tls_url: str, certificates: Certificates) -> None:
    """A server with mutual TLS that is shown no certificate ends with 12, or 10 when it hung up first; --cert is named.

    In TLS 1.3 our side of the handshake is over before the server refuses: its reason and the end of the connection
    race.
    """
    process = commands.start("brokerfl", "runs", "--redis", redis_tls_url, "--ca-cert", certificates.ca)
    process.ends(12, 10)
    assert "--cert" in process.err
    assert "Traceback" not in process.err


def test_a_file_that_is_no_certificate(commands: Commands, redis_tls_url: str, certificates: Certificates) -> None:
    """It ends with 12 and a line that names the three options."""
    right = {"ca-cert": certificates.ca, "cert": certificates.client_cert, "key": certificates.client_key}
    for wrong in right:
        paths = {**right, wrong: "client.py"}
        options = [part for name, path in paths.items() for part in (f"--{name}", path)]
        commands.start("brokerfl", "runs", "--redis", redis_tls_url, *options)
    for process in commands.started:
        assert "a file given with --ca-cert, --cert or --key is not a PEM file" in error_of(process.ends(12))


def test_the_wrong_scheme_for_the_port(commands: Commands, redis_tls_url: str, broker: Broker) -> None:
    """redis:// to a TLS port and rediss:// to a plain one end with 10, and the hint speaks of TLS."""
    urls = (redis_tls_url.replace("rediss", "redis"), broker.url.replace("redis", "rediss"))
    for url, process in [(url, commands.start("brokerfl", "runs", "--redis", url)) for url in urls]:
        assert error_of(process.ends(10)).startswith(f"Error: Redis at {url} does not answer: ")
        assert "speaks TLS" in process.err or "speak TLS on this port" in process.err
