"""The manifests in kubernetes/: what they say fits the image, the commands, and what the documents promise.

The schemas of Kubernetes are too large for the tests; docs/development.md says how the manifests are checked by them.
"""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from brokerfl.cli.exits import Exit
from brokerfl.cli.node import main as node
from brokerfl.cli.server import main as server

ROOT = Path(__file__).parent.parent.parent

COMMANDS: dict[str, click.Command] = {"brokerfl-node": node, "brokerfl-server": server}

WORKLOADS = ("nodes", "run", "resume")

RUN = "10443037831565443450"


def load(name: str) -> dict[str, Any]:
    """A manifest, with the id of a run where one has to be filled in."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "kubernetes" / f"{name}.yaml").read_text().replace("RUN_ID", RUN))
    return found


def pod_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specification of the pod, and of its only container."""
    pod = load(name)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def parsed(container: dict[str, Any]) -> dict[str, Any]:
    """What the command makes of its arguments, which all have to be texts."""
    name, *arguments = container["command"]
    assert all(isinstance(word, str) for word in container["command"])
    return COMMANDS[name].make_context(name, arguments).params


def dockerfile(pattern: str) -> str:
    found = re.search(pattern, (ROOT / "Dockerfile").read_text())
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_pod_may_do_nothing_but_its_work(name: str) -> None:
    """It runs as the image's user, changes nothing but its volumes, opens no port, and may not ask Kubernetes.

    Only nodes have a probe: a run that does not get on is the app's.
    """
    pod, container = pod_of(name)
    user = int(dockerfile(r"useradd --uid (\d+)"))
    context = pod["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == user
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    probes = {"livenessProbe", "readinessProbe", "startupProbe"} & container.keys()
    assert probes == ({"livenessProbe"} if name == "nodes" else set())
    assert "ports" not in container
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_pod_finds_redis(name: str) -> None:
    """The URL is in a file that its user can read and not everybody, and each variable is one of the command's."""
    pod, container = pod_of(name)
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    known = {str(option.envvar) for option in COMMANDS[container["command"][0]].params}
    assert {name for name in variables if name.startswith("BROKERFL_")} <= known
    secret = load("redis-url")
    (volume,) = (volume for volume in pod["volumes"] if "secret" in volume)
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == volume["name"])
    assert volume["secret"] == {"secretName": secret["metadata"]["name"], "defaultMode": 0o440}
    assert [f"{mount['mountPath']}/{key}" for key in secret["stringData"]] == [variables["BROKERFL_REDIS_URL_FILE"]]


def test_nodes_keep_name_and_state() -> None:
    """A pod's name is its node's, its state is on a claim of its own, and it may finish a message before it is killed.

    The data are divided among as many nodes as there are.
    """
    manifest = load("nodes")
    pod, container = pod_of("nodes")
    assert manifest["kind"] == "StatefulSet"
    assert pod["terminationGracePeriodSeconds"] > parsed(container)["grace"]
    by_name = {variable["name"]: variable for variable in container["env"]}
    assert by_name["BROKERFL_NODE_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert f"num-partitions={manifest['spec']['replicas']}" in by_name["BROKERFL_NODE_CONFIG"]["value"].split()
    (claim,) = manifest["spec"]["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == dockerfile(r"ENV BROKERFL_STATE_DIR=(\S+)")


def test_a_run_is_started_once() -> None:
    """A pod that is started again would start a second run; the Job has no name, so each is a new one."""
    manifest = load("run")
    assert manifest["kind"] == "Job"
    assert "name" not in manifest["metadata"]
    assert manifest["spec"]["backoffLimit"] == 0
    assert manifest["spec"]["podReplacementPolicy"] == "Failed"
    pod, container = pod_of("run")
    assert pod["restartPolicy"] == "Never"
    assert parsed(container)["resume"] is None


def test_a_run_is_resumed_again_and_again() -> None:
    """Until it has ended: the Job gives up where another attempt would end in the same way."""
    pod, container = pod_of("resume")
    assert parsed(container)["resume"] == RUN
    assert pod["restartPolicy"] == "Never"
    spec = load("resume")["spec"]
    assert spec["backoffLimit"] > 0
    (codes,) = (rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert codes["containerName"] == container["name"]
    assert codes["values"] == [
        Exit.USAGE, Exit.APP_LOAD, Exit.RUN_NOT_FOUND, Exit.RUN_STOPPED, Exit.RUN_LOST, Exit.RUN_FENCED
    ]  # fmt: skip


def test_both_jobs_are_alike() -> None:
    """Apart from what a new run and a resumed one need."""
    run, resume = load("run"), load("resume")
    for manifest in (run, resume):
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        container["command"] = container["command"][:4]
        container["env"] = [variable for variable in container["env"] if variable["name"] != "BROKERFL_RUN_CONFIG"]
        manifest["spec"].pop("podFailurePolicy", None)
        manifest["spec"].pop("backoffLimit")
        manifest["metadata"].pop("generateName")
    assert run == resume
