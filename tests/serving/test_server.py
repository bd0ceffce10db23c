"""The server as a process: stop signals, load, hostile uploads, and files that it must not write."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psutil
import pytest

from tests.robustness import fuzz
from tests.serving.conftest import files, png
from tests.serving.processes import running

UPLOADS = int(os.environ.get("FRACTATLAS_UPLOADS", 1000))
REQUESTS, CLIENTS = 200, 8
MEGABYTES = 600  # that the server may need for requests, in addition to what it needs after the first one


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_server_after_the_accepted_requests(with_map, tmp_path, number):
    with running(with_map, tmp_path) as server, httpx2.Client(base_url=server.address, timeout=60) as client:
        assert client.get("/health").json()["status"] == "ok"
        answers = []

        def post() -> None:
            answers.append(client.post("/v1/predict", files=files(*[png((1500, 1800))] * 8)))

        thread = threading.Thread(target=post)
        thread.start()
        while not client.get("/health").json()["requests"]:
            time.sleep(0.01)
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
        thread.join()
        assert answers[0].status_code == 200
        assert server.files() == []
        lines = server.log.read_text().splitlines()
    assert lines[-1].endswith("stopped")
    assert any("POST /v1/predict 200 (" in line for line in lines)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.integration
def test_a_port_that_is_in_use_is_an_error_in_one_line(with_map, tmp_path):
    with running(with_map, tmp_path) as server:
        port = server.address.rpartition(":")[2]
        line = [sys.executable, "-m", "fractatlas", "serve", f"ckpt={with_map}", f"port={port}"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    expected = f"error: cannot listen on host=127.0.0.1 port={port}: address already in use; use another host or port"
    assert done.stderr.splitlines()[-1] == expected


@pytest.mark.integration
def test_no_request_of_several_clients_is_lost_and_memory_is_bounded(with_map, tmp_path):
    content = png((1500, 1800))
    with running(with_map, tmp_path) as server:
        process = psutil.Process(server.process.pid)
        peak = [0]

        def post(number: int) -> tuple[int, int]:
            with httpx2.Client(base_url=server.address, timeout=300) as client:
                for _ in range(100):
                    answer = client.post("/v1/predict?map=true&image=true", files=files(content, name=f"{number}.png"))
                    peak[0] = max(peak[0], process.memory_info().rss)
                    if answer.status_code != 429:
                        break
                    time.sleep(int(answer.headers["retry-after"]))
            assert answer.json()["results"][0]["name"] == f"{number}.png"
            return answer.status_code, number

        post(0)
        before = process.memory_info().rss
        with ThreadPoolExecutor(CLIENTS) as pool:
            answered = list(pool.map(post, range(1, REQUESTS + 1)))
        assert server.files() == []
    assert Counter(status for status, _ in answered) == {200: REQUESTS}
    assert [number for _, number in answered] == list(range(1, REQUESTS + 1))
    assert (peak[0] - before) / 1e6 < MEGABYTES


@pytest.mark.integration
@pytest.mark.fault("upload of a randomly changed image file", "predicted or refused with a reason; no file is written")
def test_hostile_uploads_are_answered_and_leave_no_file(with_map, tmp_path, record_property):
    contents = fuzz.seeds()
    statuses: Counter = Counter()
    with running(with_map, tmp_path) as server, httpx2.Client(base_url=server.address, timeout=120) as client:
        for number in range(UPLOADS):
            names = ("a.png", "../../a", "\0", "a" * 1000, "<img src=x onerror=alert(1)>", "\U0001f9b4.dcm")
            uploads = files(fuzz.mutant(number, contents), name=names[number % len(names)])
            answer = client.post("/v1/predict?map=true", files=uploads)
            statuses[answer.status_code] += 1
            assert answer.status_code in (200, 422), answer.text
            (result,) = answer.json()["results"]
            assert re.fullmatch(r"[\w .,()+@#=-]{1,100}", result["name"])
            assert ("error" in result) == (answer.status_code == 422)
        assert client.get("/health").json() | {"notice": ""} == {"status": "ok", "requests": 0, "notice": ""}
        assert server.files() == []
        log = server.log.read_text()
    assert set(statuses) == {200, 422}
    assert min(statuses.values()) > UPLOADS / 20
    assert "Traceback" not in log
    record_property("tried", UPLOADS)
