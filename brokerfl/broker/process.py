"""Who holds a lease: a token that names host, process and the process's start.

Owns the token's form, and the question whether its holder is certainly dead. It must not know Redis.
"""

import os
import re
import secrets
import socket
import subprocess
from pathlib import Path

from brokerfl.common.text import shown


def new_token(home: str = "") -> str:
    """Return ``host/pid/start/random/home`` of this process; the random part distinguishes leases of one process.

    Args:
        home: the identity of a directory that this process has locked.
    """
    pid = os.getpid()
    return f"{_host()}/{pid}/{_started(pid) or '-'}/{secrets.token_hex(8)}/{home}"


def home_of(token: str) -> str:
    """Return the identity of the directory that the token's process had locked."""
    return token.rpartition("/")[2]


def is_dead(token: str) -> bool:
    """Return whether the process named by ``token`` ran on this host and is gone.

    A process of another host or container never counts as dead: only its lease can tell.
    """
    host, _, rest = token.partition("/")
    pid, _, rest = rest.partition("/")
    started = rest.partition("/")[0]
    if host != _host() or not re.fullmatch("[0-9]{1,10}", pid) or started == "-":
        return False
    return _started(int(pid)) != started


def text_of(lease: bytes) -> str:
    """Return the value of a lease as text, whatever somebody else wrote there."""
    return lease.decode(errors="replace")


def describe(token: str) -> str:
    """Return who holds a lease, in words."""
    host, _, rest = token.partition("/")
    return shown(f"process {rest.partition('/')[0]} on {host.partition('+')[0]}")


def _host() -> str:
    """Return the host and process namespace: the pid of another container means nothing here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
        return f"{socket.gethostname()}+{boot}+{namespace}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return when process ``pid`` started, as the system writes it; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        ps = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return ps.stdout.strip().replace(" ", "_").replace("/", "_") or None
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may contain spaces
    return None if fields[0] == "Z" else fields[19]  # proc(5): field 3 is the state, field 22 the start time
