"""Where the figures come from: the machine and the versions, without names and paths."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe(client: Any) -> dict[str, str]:
    """Return what a reader has to know to compare figures.

    Args:
        client: of the server that is measured on.
    """
    server = client.info("server")
    name = server.get("server_name", "redis").capitalize()
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()}, {platform.machine()}",
        "Python": platform.python_version(),
        "brokerfl": _version("brokerfl"),
        "redis-py": _version("redis"),
        "hiredis": _version("hiredis"),
        "numpy": _version("numpy"),
        "server": f"{name} {server.get('valkey_version', server['redis_version'])}, no persistence, on this machine",
        "load average at the start": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
