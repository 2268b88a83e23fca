"""Drive headless Chromium over the WebDriver protocol, with Debian's chromium and chromium-driver and nothing else."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's reference, of the W3C's specification


def installed() -> bool:
    return all(map(shutil.which, ("chromium", "chromedriver")))


def install(log: Path) -> None:
    """Install Chromium where it is missing, or skip the test where that cannot be done."""
    if installed():
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"install {' '.join(PACKAGES)}; this user cannot")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with log.open("w") as out:
        for command in (["update", "-qq"], ["install", "-qq", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", *command], check=True, env=environment, stdout=out, stderr=out, timeout=900)
    assert installed(), f"chromium is still missing: {log}"


class Browser:
    """One window of a browser.

    Elements are named by CSS selectors. Whatever is asked for is waited for.
    """

    def __init__(self, driver: str, size: tuple[int, int]):
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--force-device-scale-factor=1"]
        flags += ["--window-size={},{}".format(*size)]
        chrome = {"args": flags, "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        self._driver = driver
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]

    def _do(self, method: str, path: str, body: Any = None) -> Any:
        return self._ask(method, self._session + path, body)

    def open(self, address: str) -> None:
        self._do("POST", "/url", {"url": address})

    def run(self, script: str, *values: Any) -> Any:
        return self._do("POST", "/execute/sync", {"script": script, "args": list(values)})

    def wait(self, script: str, *values: Any, seconds: float = 60) -> Any:
        """Wait until a script returns something true, and return that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := self.run(script, *values):
                return result
            time.sleep(0.1)
        raise AssertionError(f"not so within {seconds:g} s: {script} {values}; the page says: {self.text('body')}")

    def elements(self, selector: str) -> list[str]:
        found = self._do("POST", "/elements", {"using": "css selector", "value": selector})
        return [element[ELEMENT] for element in found]

    def element(self, selector: str) -> str:
        self.wait("return document.querySelector(arguments[0])", selector)
        return self.elements(selector)[0]

    def click(self, selector: str) -> None:
        self._do("POST", f"/element/{self.element(selector)}/click", {})

    def click_text(self, selector: str, text: str) -> None:
        """Click the element of a kind that has a text."""
        found = "return [...document.querySelectorAll(arguments[0])].find(e => e.innerText.trim() == arguments[1])"
        self._do("POST", f"/element/{self.wait(found, selector, text)[ELEMENT]}/click", {})

    def type(self, selector: str, text: str, number: int = 0) -> None:
        """Type a text, or choose a file by its path, in one of the elements."""
        self.element(selector)
        self._do("POST", f"/element/{self.elements(selector)[number]}/value", {"text": text})

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def addresses(self) -> list[str]:
        """Return the addresses that the browser has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self._do("POST", "/se/log", {"type": kind})


@contextmanager
def browser(folder: Path, size: tuple[int, int] = (1200, 1400)) -> Iterator[Browser]:
    """Open a browser whose profile and other files are in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder)}
    with (folder / "driver.log").open("w") as log:
        command = ["chromedriver", f"--port={port}"]
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(port)
        window = Browser(f"http://127.0.0.1:{port}", size)
        try:
            yield window
        finally:
            window._do("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(30)


def _wait_for(port: int) -> None:
    for _ in range(300):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("chromedriver did not start within 30 s")
