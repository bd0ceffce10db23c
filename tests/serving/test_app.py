"""The answers of the server: results, errors, limits, headers and log lines."""

import base64
import io
import os
import re
import threading
import time

import numpy as np
import pytest
from PIL import Image

from fractatlas.evaluation.localisation import place
from fractatlas.inference.model import load_model
from fractatlas.serving import app as serving_app
from fractatlas.serving.app import NOTICE
from fractatlas.serving.uploads import displayed_name
from tests.data.test_images import NOISE, dicom
from tests.serving.conftest import POINT, files, png, serving


def decoded(address: str) -> np.ndarray:
    head, content = address.split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_the_answer_has_the_numbers_of_load_model(client, model, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    dicom(tmp_path / "b.dcm", NOISE)
    contents = [(tmp_path / name).read_bytes() for name in ("a.png", "b.dcm")]
    answer = client("box_threshold=0.001").post("/v1/predict", files=files(*contents))
    assert answer.status_code == 200
    body = answer.json()
    assert (body["notice"], body["threshold"]) == (NOTICE, POINT["threshold"])
    assert [len(body["results"]), body["results"][0]["name"]] == [2, "a.png"]
    for name, result in zip(("a.png", "b.dcm"), body["results"], strict=True):
        expected = model.predict(tmp_path / name)
        assert result["probability"] == pytest.approx(expected.probability, abs=1e-6)
        assert result["probability_calibrated"] == pytest.approx(expected.probability_calibrated, abs=1e-6)
        assert result["probability_calibrated"] != pytest.approx(result["probability"], abs=1e-4)
        assert result["prediction"] == int(expected.fractured)
        assert {"map", "image"}.isdisjoint(result)
    pixels = model.preprocess(Image.open(io.BytesIO(contents[0])))[None]
    boxes = model.find_boxes(model.forward(pixels, True)[1][0].numpy(), (60, 80), 0.001)
    assert len(boxes) > 0
    found = [[box[name] for name in ("left", "top", "right", "bottom", "score")] for box in body["results"][0]["boxes"]]
    assert np.abs(np.array(found) - boxes).max() < 0.01
    assert [body["results"][0][name] for name in ("width", "height")] == [60, 80]


def test_images_and_maps_are_grey_and_scaled_to_the_limit(client, model):
    content = png((300, 200))
    result = client("image_side=64").post("/v1/predict?map=true&image=true", files=files(content)).json()["results"][0]
    image, drawn = decoded(result["image"]), decoded(result["map"])
    assert image.shape == drawn.shape == (43, 64)
    assert abs(int(image[0, 0]) - 90) < 5
    pixels = model.preprocess(Image.open(io.BytesIO(content)))[None]
    heat = model.forward(pixels, True)[1][0].numpy()
    view = np.array(model.preprocess.view(300, 200)) * np.array([64 / 300, 43 / 200] * 2)
    assert np.abs(255 * place(heat, view, 64, 43) - drawn).max() < 1.5
    assert drawn.any()
    full = client().post("/v1/predict?image=true", files=files(content)).json()["results"][0]
    assert decoded(full["image"]).shape == (200, 300)


def test_a_network_without_a_map_gives_gradcam_without_boxes(without_map):
    with serving(load_model(without_map)) as client:
        connected = client()
        result = connected.post("/v1/predict?map=true", files=files(png())).json()["results"][0]
        assert result["boxes"] is None
        assert decoded(result["map"]).max() in (0, 255)
        described = connected.get("/v1/model").json()
    assert (described["heatmap"], described["box_threshold"]) == ("Grad-CAM", None)


def test_an_unreadable_file_does_not_affect_the_others(client):
    answer = client().post("/v1/predict", files=files(png(), b"text", b"", png()[:60]))
    assert answer.status_code == 200
    errors = [result.get("error", {}).get("problem") for result in answer.json()["results"]]
    assert errors[:3] == [None, "not an image", "empty file"]
    assert errors[3].startswith("truncated")
    assert "error" not in answer.json()


def test_a_request_without_a_readable_file_has_status_422(client):
    answer = client().post("/v1/predict", files=files(b"text"))
    assert answer.status_code == 422
    assert answer.json()["error"]["problem"] == "not an image"
    assert answer.json()["error"]["remedy"].startswith("upload another file: one complete radiograph")
    assert answer.json()["notice"] == NOTICE


@pytest.mark.parametrize(
    ("request_", "status", "problem"),
    [
        ({"method": "POST", "url": "/v1/predict", "json": {}}, 415, "content type application/json"),
        ({"method": "POST", "url": "/v1/predict"}, 415, "content type missing"),
        (
            {"method": "POST", "url": "/v1/predict", "data": {"a": "b"}, "files": {"x": b"y"}},
            400, "no file in the field 'files'",
        ),
        (
            {"method": "POST", "url": "/v1/predict", "content": b"--x",
             "headers": {"content-type": "multipart/form-data"}},
            400, "malformed multipart request",
        ),
        ({"method": "POST", "url": "/v1/predict?map=perhaps", "files": files(b"x")}, 400, "map: "),
        ({"method": "POST", "url": "/v1/predict", "files": files(*[b"x"] * 4)}, 413, "more than 3 files"),
        ({"method": "POST", "url": "/v1/predict", "files": files(b"x" * 9000)}, 413, "larger than 8,192 bytes"),
        (
            {"method": "POST", "url": "/v1/predict", "files": files(b"x", name="a" * 5000)},
            400, "malformed multipart request",
        ),
        ({"method": "POST", "url": "/v1/predict?heat=true", "files": files(b"x")}, 400, "unknown parameter 'heat'"),
        ({"method": "GET", "url": "/v1/predict"}, 405, "Method Not Allowed"),
        ({"method": "GET", "url": "/v2"}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_a_wrong_request_has_a_status_and_an_error(client, request_, status, problem):
    answer = client("max_files=3", "max_bytes=8192").request(**request_)
    assert answer.status_code == status
    assert problem in answer.json()["error"]["problem"]
    assert answer.json()["error"]["remedy"]
    assert answer.json()["notice"] == NOTICE


def test_the_remedy_of_a_wrong_method_is_the_right_one(client):
    assert client().get("/v1/predict").json()["error"]["remedy"] == "this address accepts POST"


def test_the_interface_is_described_with_every_status(client):
    described = client().get("/v1/openapi.json").json()["paths"]["/v1/predict"]["post"]["responses"]
    assert set(described) == {"200", "400", "408", "413", "415", "422", "429", "503"}
    schema = described["422"]["content"]["application/json"]["schema"]
    assert set(client().post("/v1/predict", files=files(b"text")).json()) <= set(schema["properties"])


@pytest.mark.parametrize(
    ("storage", "name", "warned"),
    [("1.2.840.10008.5.1.4.1.1.1.1", "DX", False), ("1.2.840.10008.5.1.4.1.1.2", "CT", True)],
)
def test_the_modality_of_a_dicom_file_is_returned_and_warned_of(client, tmp_path, storage, name, warned):
    file = dicom(tmp_path / "a.dcm", NOISE, SOPClassUID=storage, Modality=name)
    result, other = client().post("/v1/predict", files=files(file.read_bytes(), png())).json()["results"]
    assert result["modality"] == name
    assert (result["warning"] is not None) == warned
    assert other["modality"] is other["warning"] is None


def test_a_request_of_unknown_length_is_not_read_beyond_the_limit(client):
    sent = []

    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(1000):
            sent.append(1024)
            yield bytes(1024)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client("max_bytes=4096").post("/v1/predict", content=chunks(), headers=headers)
    assert answer.status_code == 413


def test_names_of_files_are_shortened_to_their_last_part(client):
    connected = client()
    for given, shown in (("../../etc/passwd", "passwd"), ("C:\\x\\<b>é.png", "_b_é.png"), ("a" * 300, "a" * 100)):
        answer = connected.post("/v1/predict", files=files(png(), name=given)).json()
        assert answer["results"][0]["name"] == shown
    assert displayed_name("a\x01\nb") == "a__b"
    assert [displayed_name(name) for name in (None, "", "..", "/")] == ["file", "file", "..", "file"]


def test_requests_above_the_limit_are_refused_and_the_others_are_answered(client, model, monkeypatch):
    connected, forward, inside = client("max_requests=2"), type(model).forward, threading.Event()
    proceed = threading.Event()

    def wait(self, pixels, heatmaps=False, gradcam=False):
        inside.set()
        assert proceed.wait(20)
        return forward(self, pixels, heatmaps, gradcam)

    monkeypatch.setattr(type(model), "forward", wait)
    statuses: list[int] = []

    def post() -> None:
        statuses.append(connected.post("/v1/predict", files=files(png())).status_code)

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(20)
    while connected.get("/health").json()["requests"] < 2:
        time.sleep(0.01)
    refused = connected.post("/v1/predict", files=files(png()))
    proceed.set()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200]
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert connected.get("/health").json()["requests"] == 0
    assert connected.post("/v1/predict", files=files(png())).status_code == 200


def test_a_request_that_takes_too_long_is_answered(client, model, monkeypatch):
    proceed, forward = threading.Event(), type(model).forward

    def wait(self, *arguments, **options):
        proceed.wait(20)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(model), "forward", wait)
    connected = client("max_seconds=0.3")
    answer = connected.post("/v1/predict", files=files(png()))
    proceed.set()
    assert answer.status_code == 503
    assert answer.json()["error"]["problem"] == "the request takes longer than 0.3 seconds"


def test_a_failure_of_the_network_is_answered_and_the_next_request_succeeds(client, model, monkeypatch):
    def fail(self, *arguments, **options):
        raise RuntimeError("broken")

    connected = client()
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", fail)
        answer = connected.post("/v1/predict", files=files(png()))
    assert answer.status_code == 500
    assert answer.json()["error"]["problem"] == "the server failed"
    assert connected.post("/v1/predict", files=files(png())).status_code == 200


def test_the_description_of_the_model_has_the_card_the_limits_and_no_path(client, with_map):
    connected = client("max_files=5")
    described = connected.get("/v1/model").json()
    assert described["card"] == "# Card\n\nüber\n"
    assert described["limits"]["max_files"] == 5
    assert described["operating_point"] == POINT
    assert (described["model"], described["heatmap"]) == ("densenet_tiny", "fracture map")
    assert described["full_heat"] == 2 * POINT["box_threshold"]
    assert set(described["versions"]) == {"fractatlas", "python", "torch"}
    assert str(with_map.parent.parent) not in connected.get("/v1/model").text
    markdown = connected.get("/v1/model?format=markdown")
    assert markdown.headers["content-type"].startswith("text/markdown")
    assert markdown.text == f"{NOTICE}\n\n# Card\n\nüber\n"
    assert connected.get("/v1/model?format=xml").status_code == 400


def test_several_networks_are_averaged(make_checkpoint, with_map, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    ensemble = load_model([with_map, make_checkpoint("map=fpn", "map.channels=8", "seed=1")])
    with serving(ensemble) as client:
        connected = client()
        described = connected.get("/v1/model").json()
        result = connected.post("/v1/predict", files=files(png())).json()["results"][0]
    assert (described["networks"], described["card"]) == (2, None)
    assert described["threshold"] == pytest.approx(ensemble.operating_point["threshold"])
    assert result["probability"] == pytest.approx(ensemble.predict(tmp_path / "a.png").probability, abs=1e-6)


def test_every_address_has_the_headers_and_every_json_answer_the_notice(client):
    connected = client()
    for address in ("/", "/page.css", "/page.js", "/health", "/v1/model", "/palette.json", "/nothing"):
        answer = connected.get(address)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        if answer.headers["content-type"] == "application/json":
            assert answer.json()["notice"] == NOTICE
    assert connected.get("/page.js").headers["content-type"].startswith("text/javascript")
    assert len(connected.get("/palette.json").json()["colours"]) == 256
    described = connected.get("/v1/openapi.json").json()
    assert {"/v1/predict", "/v1/model", "/health"} == set(described["paths"])


def test_the_page_loads_nothing_from_another_host_and_has_no_inline_code():
    page, script, style = (
        (serving_app.PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "page.js", "page.css")
    )
    assert NOTICE in page
    for text in (page, script, style):
        assert "//" not in text.replace("// ", "")  # comments of the script
    assert "<script>" not in page
    assert not re.search(r"<[^>]*\s(style|on\w+)=", page)
    for unsafe in ("innerHTML", "outerHTML", "document.write", "eval(", "insertAdjacentHTML"):
        assert unsafe not in script


def test_no_file_is_written(client, tmp_path, monkeypatch):
    import tempfile

    created = []
    monkeypatch.setattr(tempfile, "_TemporaryFileWrapper", lambda *a, **k: created.append(a))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *a, **k: created.append(a))
    monkeypatch.chdir(tmp_path)
    large = png() + bytes(3_000_000)
    answer = client().post("/v1/predict", files=files(large, png()))
    assert answer.status_code == 200
    assert created == []
    assert os.listdir(tmp_path) == []


def test_each_request_has_one_log_line_without_names(client, caplog):
    caplog.set_level("INFO", logger="fractatlas.serving")
    client().post("/v1/predict", files=files(png(), b"x", name="Anna Muster.png"))
    client().get("/nothing%0A")
    lines = [record.getMessage() for record in caplog.records if record.name == "fractatlas.serving.app"]
    assert len(lines) == 2
    assert lines[0].startswith("POST /v1/predict 200 (0.00 MB, 2 files, 1 error) in ")
    assert lines[1].startswith("GET /nothing\\n 404 in ")
    assert "Muster" not in caplog.text
