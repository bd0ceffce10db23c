"""The page in Chromium: results, errors, controls, and the width of a phone."""

import base64
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.test_images import NOISE, dicom
from tests.serving.conftest import png
from tests.serving.processes import running

SECONDS = 60
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--remote-debugging-pipe"]  # fmt: skip
# A folder that receives the pictures of the documentation, and the run folder that they show.
PICTURES, SHOWN = (os.environ.get(f"FRACTATLAS_{name}") for name in ("PICTURES", "SHOWN"))


class Browser:
    """A page in Chromium, controlled by the Chrome DevTools Protocol.

    With ``--remote-debugging-pipe``, Chromium reads commands from file descriptor 3 and writes answers and events to
    file descriptor 4, as JSON that ends with a null byte.
    """

    def __init__(self, program: str, profile: Path, width: int, height: int):
        commands, self.output = os.pipe()
        self.input, answers = os.pipe()

        def redirect() -> None:
            # Above 4 first, in case one of the ends has the number 3 or 4.
            first, second = os.dup(commands), os.dup(answers)
            while min(first, second) < 5:
                first, second = os.dup(first), os.dup(second)
            os.dup2(first, 3)
            os.dup2(second, 4)

        line = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            line, pass_fds=(3, 4), preexec_fn=redirect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self.received, self.number, self.errors = b"", 0, []
        self.session: dict[str, str] = {}
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        phone = width < 500
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)  # fmt: skip

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; collect errors of the page that are reported meanwhile."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"]["text"])
            elif answer.get("method") == "Log.entryAdded":
                entry = answer["params"]["entry"]
                if entry["level"] == "error" and entry["source"] != "network":  # a refused file has status 422
                    self.errors.append(entry["text"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.received:
            content = os.read(self.input, 2**20)
            assert content, "Chromium has ended"
            self.received += content
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && document.querySelector('#drop')")

    def run(self, expression: str) -> Any:
        """Return the value of an expression or of the statements of a function."""
        if ";" in expression or "return " in expression:
            expression = f"(() => {{ {expression} }})()"
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def upload(self, *paths: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def press(self, selector: str, keys: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")

    def wait(self, expression: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)

    def text(self) -> str:
        return self.run("document.body.innerText")

    def picture(self, file: Path, selector: str | None = None) -> None:
        """Write a picture of what is visible, or of the elements that a selector finds, visible or not."""
        options: dict[str, Any] = {}
        if selector:
            lines = "document.querySelectorAll(" + json.dumps(selector) + ")"
            edges = self.run(
                f"const all = [...{lines}].map((one) => one.getBoundingClientRect());"
                "return [Math.min(...all.map((one) => one.top)) + scrollY, Math.max(...all.map((one) => one.bottom)) +"
                " scrollY, document.documentElement.scrollWidth];"
            )
            clip = {"x": 0, "y": edges[0], "width": edges[2], "height": edges[1] - edges[0], "scale": 1}
            options = {"clip": clip, "captureBeyondViewport": True}
        picture = self.call("Page.captureScreenshot", format="png", **options)
        with Image.open(io.BytesIO(base64.b64decode(picture["data"]))) as image:
            small = image.convert("RGB")
            small.thumbnail((900, 640), Image.Resampling.LANCZOS)
            small.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(file, optimize=True)  # keeps rare colours

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        os.close(self.input)
        os.close(self.output)


@pytest.fixture
def browse(tmp_path):
    """Open a browser of a width and a height: ``browse(1280, 900)``."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium: apt-get install chromium")
    opened = []

    def start(width: int, height: int) -> Browser:
        opened.append(Browser(program, tmp_path / f"profile{len(opened)}", width, height))
        return opened[-1]

    yield start
    for browser in opened:
        browser.close()


PIXELS = """
const canvas = document.querySelector("canvas");
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
        browser.wait("document.querySelector('#status').textContent.startsWith('4 of 4')")
        browser.wait("document.querySelectorAll('canvas[data-drawn]').length == 2")
        shown = browser.text()
        assert "4 of 4 files done: 2 predicted, 2 failed" in shown
        assert shown.count("Truncated") + shown.count("Not an image") == 2
        assert "onerror=document.title" in shown  # as text
        assert browser.run("document.title") == "fractatlas: fractures in radiographs"
        assert "densenet_tiny" in shown
        assert browser.run("document.querySelectorAll('.boxes tbody tr').length") > 0
        assert browser.run("document.querySelectorAll('.state:not([hidden])').length") == 0
        assert browser.run("document.querySelector('.opacity').nextElementSibling.value") == "55 %"
        assert browser.errors == []
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
        assert server.files() == []


@pytest.mark.integration
def test_the_page_fits_a_phone_and_is_used_with_the_keyboard(without_map, tmp_path, browse):
    (tmp_path / "a.png").write_bytes(png((300, 400)))
    with running(without_map, tmp_path / "server") as server:
        browser = browse(390, 844)
        browser.open(server.address)
        browser.upload(tmp_path / "a.png")
        browser.wait("document.querySelector('canvas[data-drawn]')")
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
        assert browser.errors == []


@pytest.mark.integration
@pytest.mark.skipif(not (PICTURES and SHOWN), reason="set FRACTATLAS_PICTURES and FRACTATLAS_SHOWN")
@pytest.mark.parametrize(("name", "width", "height"), [("desktop", 1280, 960), ("phone", 390, 844)])
def test_pictures_of_the_documentation_show_results_and_errors(tmp_path, browse, phantoms, name, width, height):
    image = sorted((phantoms / "images" / "Fractured").iterdir())[0]
    with Image.open(image) as radiograph:
        grey = radiograph.convert("L")
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    dicom(tmp_path / "wrist.dcm", np.asarray(grey).astype(np.uint16) * 16, **window)
    large = np.asarray(grey.resize((5000, 5000))).astype(np.uint16) * 16
    dicom(tmp_path / "large.dcm", large, **window)  # 50 MB
    (tmp_path / "broken.jpg").write_bytes(image.read_bytes()[:3000])
    (tmp_path / "too_large.dcm").write_bytes(bytes(70_000_000))
    names = ("wrist.dcm", "broken.jpg", "large.dcm", "too_large.dcm")
    with running(Path(SHOWN), tmp_path / "server") as server:
        browser = browse(width, height)
        browser.open(server.address)
        browser.picture(Path(PICTURES) / f"serve_{name}_start.png")
        browser.upload(image, *(tmp_path / one for one in names))
        waiting = browser.run("[...document.querySelectorAll('.state:not([hidden])')].map((one) => one.textContent)")
        assert "Uploading and predicting …" in waiting
        browser.picture(Path(PICTURES) / f"serve_{name}_waiting.png")
        browser.wait("document.querySelectorAll('canvas[data-drawn]').length == 3")
        browser.wait("document.querySelector('#status').textContent.startsWith('5 of 5')")
        browser.picture(Path(PICTURES) / f"serve_{name}.png")
        for number in range(1, 6):
            browser.picture(Path(PICTURES) / f"serve_{name}_{number}.png", f".result:nth-child({number})")
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.errors == []
