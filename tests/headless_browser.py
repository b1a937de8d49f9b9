"""Chromium or Chrome without a screen, driven by its DevTools protocol: scripts run in real time, workers included."""

import asyncio
import base64
import itertools
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def require_browser() -> None:
    """Skip the test where no browser is installed: none is a Python package, so `make install` cannot bring one."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")


OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--remote-debugging-port=0"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
"""Options with which a browser without a graphics card draws WebGL, on the CPU."""


class Tab:
    """A tab of the browser.

    Attributes:
        requests: Addresses of everything that the tab has asked for , other than `data:` and `blob:`.
        errors: Messages of exceptions that no script caught, and what scripts wrote to the console as errors.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.errors: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        """Return the result of a command of the DevTools protocol; what happens meanwhile is noted."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (answer := await self._socket.receive_json()).get("id") != number:
            self._note(answer.get("method"), answer.get("params", {}))
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _note(self, event: str | None, facts: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent" and not facts["request"]["url"].startswith(("data:", "blob:")):
            self.requests.append(facts["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(facts["exceptionDetails"]))
        elif event == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"]["text"])

    async def open(self, url: str, condition: str) -> None:
        """Go to a page and wait until a JavaScript expression on it is true."""
        for domain in ("Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until(condition)

    async def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, or of the promise that it is."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        while not await self.value(condition):
            await asyncio.sleep(0.1)

    async def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Move the mouse to a place in the window, in CSS pixels, or press or release a button there."""
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    async def click(self, x: float, y: float) -> None:
        """Click the left button at a place in the window."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.mouse(kind, x, y, button="left", clickCount=1)

    async def picture(self) -> bytes:
        """Return what the tab shows, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


def browse(
    visit: Callable[[Tab], Awaitable[Any]], folder: Path, options: Sequence[str] = (), seconds: float = 90
) -> Any:
    """Return what a visit returns, which is given a tab of a new browser.

    Args:
        visit: What to do in the tab.
        folder: Empty folder for the browser's profile.
        options: Further options of the browser. No other host than the loopback can be reached.
        seconds: Time after which the visit counts as failed.
    """
    command = [BROWSER, *OPTIONS, *options, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            (port,) = next(
                found.groups() for line in lines if (found := re.search(r"listening on ws://.*?:(\d+)/", line))
            )
            return asyncio.run(asyncio.wait_for(_visit(port, visit), seconds))
        finally:
            process.terminate()


async def _visit(port: str, visit: Callable[[Tab], Awaitable[Any]]) -> Any:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            page = next(one for one in await answer.json() if one["type"] == "page")
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            return await visit(Tab(socket))


def evaluate(url: str, condition: str, script: str, folder: Path, seconds: float = 90) -> Any:
    """Return the value of a JavaScript expression on a page, once a condition on the page holds.

    Args:
        url: Address of the page. No other host than the loopback can be reached.
        condition: JavaScript expression that is true when the page is ready.
        script: JavaScript expression to return the value of.
        folder: Empty folder for the browser's profile.
        seconds: Time after which the condition counts as failed.
    """

    async def visit(tab: Tab) -> Any:
        await tab.open(url, condition)
        return await tab.value(script)

    return browse(visit, folder, seconds=seconds)
