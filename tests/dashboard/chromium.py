"""A headless Chromium driven over the pipe of its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 30.0
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_START = 'exec "$0" "$@" 3<&"$FROM" 4>&"$TO"'  # the browser reads from 3 and writes to 4


def chromium_path() -> str | None:
    """Where a Chromium is, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser process; its pages share nothing but the process."""

    def __init__(self, path: str, folder: Path) -> None:
        to_browser, self._commands = os.pipe()
        self._messages, from_browser = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        self._process = subprocess.Popen(
            ["bash", "-c", _START, path, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=high,
            env={**os.environ, "FROM": str(high[0]), "TO": str(high[1]), "HOME": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_browser, from_browser, *high):
            os.close(end)
        self._received = b""
        self._last_id = 0
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._messages)

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events are kept by session."""
        self._last_id += 1
        command = {"id": self._last_id, "method": method, "params": params}
        message = json.dumps({**command, "sessionId": session} if session else command)
        os.write(self._commands, message.encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            if "method" in answer:
                self.events[answer.get("sessionId", "")].append(answer)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self._received:
            ready = select.select([self._messages], [], [], max(0.0, until - time.monotonic()))[0]
            chunk = os.read(self._messages, 1 << 20) if ready else b""
            assert chunk, "the browser is gone or silent"
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


class Page:
    """One tab with a session storage of its own.

    Args:
        browser: It lives in.
        url: Opened at once.
        size: Width and height in CSS pixels.
        is_dark: What the page is told of the reader's wish.
        script: Run before those of the page.
    """

    def __init__(
        self,
        browser: Chromium,
        url: str,
        size: tuple[int, int] = (1280, 900),
        is_dark: bool = False,
        script: str = "",
    ) -> None:
        self._browser = browser
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        blank = {"url": "about:blank", "browserContextId": context}
        target = browser.call("Target.createTarget", **blank)["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size[0] < 600,
        )
        scheme = "dark" if is_dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.call("Page.navigate", url=url)
        self.wait_for("location.protocol !== 'about:' && document.readyState === 'complete'")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression holds and return its value."""
        until = time.monotonic() + PATIENCE_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, (expression, self.evaluate("document.body.innerText"))
            time.sleep(0.02)
        return value

    def text(self, selector: str = "body") -> str:
        """What a reader sees of the first element that matches."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def complaints(self) -> list[str]:
        """What the browser complained about: errors, warnings, blocked content."""
        self.evaluate("0")  # events up to now are here
        found = []
        for event in self._browser.events[self._session]:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                found.append(str(params["entry"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(str(params["args"]))
        return found

    def requests(self) -> list[str]:
        """The address of every request the page made."""
        self.evaluate("0")
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events[self._session]
            if event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))
