"""A page in headless Chromium, driven over its own protocol: what it asks for, what it complains of, what it shows.

``python tests/chromium.py RUN/analysis/report.html docs/report.png`` makes the picture of the README.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import websocket_connect

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


def needed() -> None:
    """Skip where there is no Chromium; fail where STABILITYLAB_NEEDS_CHROMIUM says that there must be one."""
    if PROGRAM is None:
        message = "chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("STABILITYLAB_NEEDS_CHROMIUM"):
            pytest.fail(message)
        pytest.skip(message)


class Chromium:
    """A browser that shows one page after the other, each in a tab of its own; close it."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        command = [PROGRAM, *SWITCHES, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.loop = asyncio.new_event_loop()
        self.count = 0
        self.session: str | None = None
        self.tab: str | None = None
        self.requests: list[str] = []
        """Addresses that the page asked for."""
        self.complaints: list[str] = []
        """Exceptions, errors and warnings of the page, violations of its policy among them."""
        port, path = self._address(folder / "DevToolsActivePort")
        self.socket = self.loop.run_until_complete(self._connect(f"ws://127.0.0.1:{port}{path}"))

    def _address(self, file: Path, seconds: float = 30.0) -> list[str]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if file.exists() and len(lines := file.read_text().splitlines()) == 2:
                return lines
            time.sleep(0.05)
        raise TimeoutError("chromium did not start")

    async def _connect(self, address: str) -> Any:
        return await websocket_connect(address, max_message_size=2**28)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        return self.loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), 60))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        await self.socket.write_message(json.dumps(message))
        while True:
            answer = json.loads(await self.socket.read_message())
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, method: str | None, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))

    def open(self, page: Path, fragment: str = "", width: int = 1600, height: int = 1000, dark: bool = False) -> None:
        """Open a page of a size and a color scheme, and wait until its charts, if it has any, are drawn."""
        self.session, last = None, self.tab
        self.tab = self("Target.createTarget", url="about:blank")["targetId"]
        if last:
            self("Target.closeTarget", targetId=last)
        self.session = self("Target.attachToTarget", targetId=self.tab, flatten=True)["sessionId"]
        self.requests.clear()
        self.complaints.clear()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self("Emulation.setScrollbarsHidden", hidden=True)
        self("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.wait("document.readyState === 'complete'")
        self.wait("!document.getElementById('charts') || document.documentElement.dataset.charts === 'ready'")

    def ask(self, expression: str) -> Any:
        """Return what an expression is in the page."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true in the page."""
        until = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < until, f"never true: {expression}; {self.complaints}"
            time.sleep(0.05)

    def point(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Let the pointer do something at a place of the window."""
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def picture(self, path: Path) -> None:
        """Write what is seen of the page, as a PNG."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self.socket.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.process.terminate()
        self.process.wait(20)
        self.loop.close()


def picture_of(page: Path, path: Path, width: int = 1500, height: int = 1340, dark: bool = False) -> None:
    """Write a PNG of the upper part of a page, in few colors."""
    from PIL import Image

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Chromium(Path(folder))
        browser.open(page, width=width, height=height, dark=dark)
        browser.picture(path)
        browser.close()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    picture_of(Path(sys.argv[1]), Path(sys.argv[2]))
