"""A headless Chromium, told what to do through the pipe of its DevTools: no driver and no package is needed."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Debian's names first; the headless shell is the smaller one.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip

#: A browser reads commands from 3 and writes answers to 4.
LAUNCH = "import os, sys; [os.dup2(int(sys.argv[at]), at + 2) for at in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"

#: Seconds until a test gives up.
DEADLINE = 40.0


def find_browser() -> str | None:
    """Return the program, if it is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. What it logs as an error, and every request that leaves this machine, is kept.

    Args:
        program: from `find_browser`.
        profile: an empty directory.
    """

    def __init__(self, program: str, profile: Path) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._buffer = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._count = 0
        self._session = ""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *map(str, ends), program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )  # fmt: skip
        for end in ends:
            os.close(end)
        os.set_blocking(self._in, False)

    def __enter__(self) -> Self:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, url: str) -> None:
        """Load a page, and forget what the last one did."""
        self._call("Page.navigate", url="about:blank")
        self.errors.clear()
        self.requests.clear()
        self._call("Page.navigate", url=url)

    def ask(self, script: str) -> Any:
        """Return the value of an expression."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Wait until an expression is true; return its value. It may raise while the page is being loaded."""
        until = time.monotonic() + DEADLINE
        while not (found := self.ask(f"(() => {{ try {{ return {script} }} catch {{ return false }} }})()")):
            assert time.monotonic() < until, f"never {script}:\n{self.ask('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def looks(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window and the scheme of colours."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Write what is seen into a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **given: Any) -> dict[str, Any]:
        self._count += 1
        call: dict[str, Any] = {"id": self._count, "method": method, "params": given}
        if self._session:
            call["sessionId"] = self._session
        os.write(self._out, json.dumps(call).encode() + b"\0")
        until = time.monotonic() + DEADLINE
        while self._count not in self._answers:
            assert self._process.poll() is None, f"{method}: the browser ended with {self._process.returncode}"
            assert time.monotonic() < until, f"{method} was not answered"
            self._read()
        answer = self._answers.pop(self._count)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> None:
        try:
            self._buffer += os.read(self._in, 1 << 20)
        except BlockingIOError:
            time.sleep(0.01)
        *whole, self._buffer = self._buffer.split(b"\0")
        for text in whole:
            told = json.loads(text)
            if "id" in told:
                self._answers[told["id"]] = told
            elif told["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(told["params"]["exceptionDetails"]))
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.errors.append(str(told["params"]["entry"]["text"]))
            elif told["method"] == "Network.requestWillBeSent":
                self.requests.append(told["params"]["request"]["url"])
