"""A headless Chromium that tests drive over its DevTools pipe; no driver and no port."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """One tab. Console errors, exceptions and requested URLs gather in `errors` and `requests`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out = os.fdopen(to_browser, "wb", buffering=0)
        self._in = os.fdopen(from_browser, "rb")
        self._numbers = iter(range(1, 10**9))
        self._session: str | None = None
        self._loaded = False
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a DevTools command and give its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str, *, width: int, height: int = 900) -> None:
        """Load a page in a window of this size [px] and wait until all of it is there."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self._loaded = False
        self.call("Page.navigate", url=url)
        while not self._loaded:
            self._read()

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression in the page; promises are awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, *, timeout_s: float = 60) -> Any:
        """Evaluate again and again until the value is truthy; gives it."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression} stayed {value!r} for {timeout_s} s"
            time.sleep(0.2)
        return value

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Save what the window shows, or the whole page, as PNG."""
        shot = self.call(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=whole,
            **self._clip(whole),
        )
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {
            "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        }

    def _read(self) -> dict[str, Any]:
        """The next message; what it says about the page is noted."""
        data = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            data += byte
        message: dict[str, Any] = json.loads(data)
        details = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(details["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(
                    str(details["exceptionDetails"].get("exception", {}).get("description"))
                )
            case "Runtime.consoleAPICalled" if details["type"] == "error":
                self.errors.append(str(details["args"]))
            case "Log.entryAdded" if details["entry"]["level"] == "error":
                self.errors.append(details["entry"]["text"])
        return message


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A fresh Chromium with its profile in a folder; the test is skipped where there is none."""
    program = (
        shutil.which("chromium")
        or shutil.which("google-chrome")
        or shutil.which("chromium-browser")
    )
    if program is None:
        pytest.skip("no Chromium on this machine")
    ends = os.pipe(), os.pipe()
    (read_by_browser, to_browser), (from_browser, written_by_browser) = (
        (_raise(a), _raise(b)) for a, b in ends
    )
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe --hide-scrollbars"
    # the pipe's places are fixed
    redirect = f'exec "$@" 3<&{read_by_browser} 4>&{written_by_browser}'
    process = subprocess.Popen(
        ["bash", "-c", redirect, "bash", program, *flags.split(), f"--user-data-dir={profile}"],
        pass_fds=(read_by_browser, written_by_browser),
        stderr=subprocess.DEVNULL,
    )
    os.close(read_by_browser)
    os.close(written_by_browser)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        process.terminate()
        process.wait(30)


def _raise(descriptor: int) -> int:
    """The same file under a number that is not one of those that Chromium expects its pipe at."""
    raised = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return raised


# python tests/tools/browser.py ADDRESS PICTURE.png: the comparison page of `boxseg ui`
if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
        browser.open(sys.argv[1], width=1600, height=1130)
        browser.wait_for("document.querySelectorAll('.parcoords text').length > 10", timeout_s=300)
        hints = "[aria-label='Close'], [aria-label='Hide banner']"
        browser.evaluate(f'document.querySelectorAll("{hints}").forEach(each => each.click())')
        browser.evaluate("document.head.append(document.createElement('style'))")
        browser.evaluate(
            "document.styleSheets[document.styleSheets.length - 1].insertRule('.modebar {display: none}')"
        )
        time.sleep(5)  # charts move into their place
        browser.screenshot(Path(sys.argv[2]))
