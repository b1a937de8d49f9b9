"""Chromium or Chrome without a screen, driven by its DevTools protocol: scripts run in real time, workers included."""

import asyncio
import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def require_browser() -> None:
    """Skip the test where no browser is installed: none is a Python package, so `make install` cannot bring one."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")


def evaluate(url: str, condition: str, script: str, folder: Path, seconds: float = 90) -> Any:
    """Return the value of a JavaScript expression on a page, once a condition on the page holds.

    Args:
        url: Address of the page. No other host than the loopback can be reached.
        condition: JavaScript expression that is true when the page is ready.
        script: JavaScript expression to return the value of.
        folder: Empty folder for the browser's profile.
        seconds: Time after which the condition counts as failed.
    """
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--remote-debugging-port=0"),
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder}",
    ]
    with subprocess.Popen([BROWSER, *options, "about:blank"], stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            (port,) = next(
                found.groups() for line in lines if (found := re.search(r"listening on ws://.*?:(\d+)/", line))
            )
            return asyncio.run(asyncio.wait_for(_visit(port, url, condition, script), seconds))
        finally:
            process.terminate()


async def _visit(port: str, url: str, condition: str, script: str) -> Any:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            page = next(one for one in await answer.json() if one["type"] == "page")
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            numbers = itertools.count(1)

            async def call(method: str, **parameters: Any) -> Any:
                number = next(numbers)
                await socket.send_json({"id": number, "method": method, "params": parameters})
                while (answer := await socket.receive_json()).get("id") != number:
                    pass
                return answer["result"]

            async def value(expression: str) -> Any:
                answer = await call("Runtime.evaluate", expression=expression, returnByValue=True)
                return answer["result"].get("value")

            await call("Page.navigate", url=url)
            while not await value(condition):
                await asyncio.sleep(0.2)
            return await value(script)
