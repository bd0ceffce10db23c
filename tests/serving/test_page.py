"""The page in Chromium, driven by chromedriver: results, errors, controls, and the width of a phone."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_images import NOISE, dicom
from tests.serving.conftest import png
from tests.serving.processes import running

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id in the WebDriver protocol
SECONDS = 60
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]  # fmt: skip
SCREENSHOTS = os.environ.get("FRACTATLAS_SCREENSHOTS")  # a folder that receives the pictures of the documentation


class Browser:
    """A session of the WebDriver protocol (https://www.w3.org/TR/webdriver2)."""

    def __init__(self, driver: str, folder: Path, width: int, height: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.address = f"http://127.0.0.1:{port}/session"
        options: dict[str, Any] = {"args": [*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"]}
        if width < 500:  # narrower than the smallest window of Chromium
            options["mobileEmulation"] = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 2.0}}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options,
                                                   "goog:loggingPrefs": {"browser": "ALL"}}}}  # fmt: skip
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self.address += f"/{self.call('POST', '', wanted)['sessionId']}"
                return
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def call(self, method: str, path: str, content: Any = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)["value"]

    def open(self, address: str) -> None:
        self.call("POST", "/url", {"url": address})

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def upload(self, *paths: Path) -> None:
        element = self.call("POST", "/element", {"using": "css selector", "value": "#files"})[ELEMENT]
        self.call("POST", f"/element/{element}/value", {"text": "\n".join(map(str, paths))})

    def press(self, selector: str, text: str) -> None:
        element = self.call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]
        self.call("POST", f"/element/{element}/value", {"text": text})

    def wait(self, script: str) -> Any:
        deadline = time.monotonic() + SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)
        return value

    def text(self) -> str:
        return self.run("return document.body.innerText")

    def errors(self) -> list[str]:
        """Return the errors in the console, such as violations of the content security policy."""
        entries = self.call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def close(self) -> None:
        try:
            self.call("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait(30)


@pytest.fixture
def browse(tmp_path):
    """Open a browser of a width and a height: ``browse(1280, 900)``."""
    driver = shutil.which("chromedriver")
    if not driver or not shutil.which("chromium"):
        pytest.skip("no chromedriver: apt-get install chromium-driver")
    opened = []

    def start(width: int, height: int) -> Browser:
        opened.append(Browser(driver, tmp_path / f"profile{len(opened)}", width, height))
        return opened[-1]

    yield start
    for browser in opened:
        browser.close()


PIXELS = """
const canvas = document.querySelector(arguments[0] || "canvas");
const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let sum = 0;
for (let index = 0; index < data.length; index += 4) sum += data[index] + data[index + 1] + data[index + 2];
return sum;
"""


def set_slider(browser: Browser, name: str, value: int) -> None:
    browser.run(
        f'const slider = document.querySelector(".{name}"); slider.value = {value};'
        'slider.dispatchEvent(new Event("input"));'
    )


@pytest.mark.integration
def test_the_page_shows_results_errors_and_controls(with_map, tmp_path, browse, phantoms):
    image = next((phantoms / "images" / "Fractured").iterdir())
    (tmp_path / "broken.png").write_bytes(png()[:50])
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(50_000_000))
    hostile = tmp_path / "<img src=x onerror=document.title='ran'>.dcm"
    dicom(hostile, NOISE)
    with running(with_map, tmp_path / "server", "box_threshold=0.001") as server:
        browser = browse(1280, 1000)
        browser.open(server.address)
        assert "Research only, not a medical device." in browser.text()
        browser.upload(image, hostile, tmp_path / "broken.png", large)
        browser.wait("return document.querySelector('#status').textContent.startsWith('4 of 4')")
        browser.wait("return document.querySelectorAll('canvas[data-drawn]').length == 2")
        shown = browser.text()
        assert "4 of 4 predicted, 2 not read" in shown
        assert shown.count("truncated") + shown.count("not an image") == 2
        assert "onerror=document.title" in shown  # as text
        assert browser.run("return document.title") == "fractatlas: fractures in radiographs"
        assert "densenet_tiny" in shown
        assert browser.run("return document.querySelectorAll('.boxes tbody tr').length") > 0
        assert browser.errors() == []
        drawn = browser.run(PIXELS)
        assert drawn > 0
        set_slider(browser, "opacity", 0)
        plain = browser.run(PIXELS)
        assert plain != drawn
        set_slider(browser, "level", 20)
        assert browser.run(PIXELS) > plain  # a lower level is brighter
        browser.press("canvas", "0")
        assert browser.run(PIXELS) == drawn
        browser.press("canvas", "+++")
        assert browser.run("return Number(document.querySelector('.zoom').value)") > 150
        if SCREENSHOTS:
            browser.press("canvas", "0")
            browser.picture(Path(SCREENSHOTS) / "page_desktop.png")
        assert server.files() == []


@pytest.mark.integration
def test_the_page_fits_a_phone_and_is_used_with_the_keyboard(without_map, tmp_path, browse):
    (tmp_path / "a.png").write_bytes(png((300, 400)))
    with running(without_map, tmp_path / "server") as server:
        browser = browse(390, 844)
        browser.open(server.address)
        browser.upload(tmp_path / "a.png")
        browser.wait("return document.querySelector('canvas[data-drawn]')")
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert "no fracture map" in browser.text()
        assert browser.run("return document.querySelector('.showboxes').parentElement.hidden")
        reached = browser.run(
            "return [...document.querySelectorAll('input, canvas, button')].every((one) => one.tabIndex >= 0)"
        )
        assert reached
        unlabelled = browser.run(
            "return [...document.querySelectorAll('.result input')].filter((one) => !one.labels.length).length"
        )
        assert unlabelled == 0
        if SCREENSHOTS:
            browser.picture(Path(SCREENSHOTS) / "page_phone.png")
        assert browser.errors() == []
