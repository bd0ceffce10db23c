"""Downloads of a small archive in the published layout from a server on this machine."""

import contextlib
import errno
import hashlib
import io
import random
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fractatlas.data import download
from fractatlas.data.download import download_fracatlas
from fractatlas.errors import InputError

FILES = {"dataset.csv": b"image_id\n", "Annotations/COCO JSON/COCO_fracture_masks.json": b"{}", "Utilities/a.csv": b""}
for number in range(40):
    folder = ("Fractured", "Non_fractured")[number % 2]
    FILES[f"images/{folder}/IMG{number:07d}.jpg"] = random.Random(number).randbytes(7_000 + number)


def zipped(files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# With an entry that macOS adds.
ARCHIVE = zipped({f"FracAtlas/{path}": content for path, content in FILES.items()} | {"__MACOSX/._dataset.csv": b"Mac"})


@dataclass
class Address:
    """How one address of the server answers, and the User-Agent of each request."""

    url: str
    content: bytes = ARCHIVE
    status: int = 200
    pause: float = 0.0  # seconds per 16 KiB
    cut: int | None = None  # bytes after which the connection is closed
    requests: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        address = self.server.addresses[self.path]
        address.requests.append(self.headers["User-Agent"])
        self.send_response(address.status)
        self.send_header("Content-Length", str(len(address.content)))
        self.end_headers()
        content = address.content[: address.cut]
        with contextlib.suppress(OSError):  # the client has closed the connection
            for position in range(0, len(content), 2**14):
                self.wfile.write(content[position : position + 2**14])
                time.sleep(address.pause)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch) -> Callable[..., Address]:
    """Start an address that serves the archive, or answers otherwise: ``serve(status=404)``."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.addresses = {}
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def put(**behaviour) -> Address:
        path = f"/{len(server.addresses)}"
        server.addresses[path] = Address(f"http://127.0.0.1:{server.server_port}{path}", **behaviour)
        return server.addresses[path]

    yield put
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data" / "FracAtlas"


def fetch(root: Path, address: Address) -> str:
    return download_fracatlas(root, url=address.url, sha256=sha256(ARCHIVE))


def assert_complete(root: Path) -> None:
    """Check that all files are there as published, and nothing else, in the folder and beside it."""
    assert sorted(path.name for path in root.parent.iterdir()) == [".FracAtlas.lock", "FracAtlas"]
    assert {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()} == FILES


def assert_nothing(root: Path) -> None:
    assert {path.name for path in root.parent.glob("*")} <= {".FracAtlas.lock"}


def test_an_empty_folder_is_filled_and_a_data_folder_is_left_as_it_is(serve, root):
    address = serve()
    root.mkdir(parents=True)
    link = root.parent.parent / "link"
    link.symlink_to(root)
    assert fetch(link, address) == f"FracAtlas is in {root}: 43 files, SHA-256 of the archive verified"
    assert_complete(root)
    assert fetch(root, address) == f"FracAtlas is already in {root}; nothing is downloaded or checked"
    assert len(address.requests) == 1
    assert address.requests[0].startswith("fractatlas/")


@pytest.mark.parametrize("first", [{"status": 202, "content": b""}, {"status": 500}, {"cut": 1000}, {"content": b"x"}])
def test_the_second_address_is_used_if_the_first_does_not_return_the_archive(serve, root, monkeypatch, first):
    one, other = serve(**first), serve()
    monkeypatch.setattr(download, "URLS", (one.url, other.url))
    monkeypatch.setattr(download, "SHA256", sha256(ARCHIVE))
    download_fracatlas(root)
    assert len(one.requests) == len(other.requests) == 1
    assert_complete(root)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"status": 404}, "HTTP status 404"),
        ({"content": b"<html>please prove that you are human</html>"}, "the SHA-256 of the file is not"),
        ({"content": ARCHIVE[:-1] + b"x"}, "the SHA-256 of the file is not"),
        ({"cut": 50_000}, "IncompleteRead|broken"),
    ],
)
def test_an_answer_that_is_not_the_archive_is_reported_in_one_line(serve, root, behaviour, reason):
    address = serve(**behaviour)
    with pytest.raises(InputError, match=f"cannot download FracAtlas: {address.url}: .*({reason}).*--archive FILE$"):
        fetch(root, address)
    assert_nothing(root)


def test_a_local_archive_is_extracted_and_kept(root, tmp_path):
    archive = tmp_path / "FracAtlas.zip"
    archive.write_bytes(ARCHIVE)
    download_fracatlas(root, archive, sha256=sha256(ARCHIVE))
    assert_complete(root)
    assert archive.read_bytes() == ARCHIVE


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"FracAtlas/dataset.csv": b""}, "0 folders with dataset.csv and images"),
        ({"a/dataset.csv": b"", "a/images/1": b"", "b/dataset.csv": b"", "b/images/1": b""}, "2 folders with"),
        (None, "cannot be read as a zip archive"),
    ],
)
def test_an_archive_that_is_not_fracatlas_is_refused(tmp_path, root, files, reason):
    content = zipped(files) if files else ARCHIVE[:-1000]
    archive = tmp_path / "other.zip"
    archive.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        download_fracatlas(root, archive, sha256=sha256(content))
    with pytest.raises(InputError, match=f"other.zip: SHA-256 is {sha256(content)}, should be b67ec2d2"):
        download_fracatlas(root, archive)
    assert archive.is_file()
    assert_nothing(root)


def test_a_folder_with_other_files_is_not_changed(root):
    root.mkdir(parents=True)
    (root / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="neither empty nor FracAtlas"):
        download_fracatlas(root)
    with pytest.raises(InputError, match="is not a folder"):
        download_fracatlas(root / "thesis.tex")
    assert [path.name for path in root.parent.rglob("*")] == ["FracAtlas", "thesis.tex"]


@pytest.mark.fault("disk full while downloading or extracting FracAtlas", "one error line, no partial folder")
@pytest.mark.parametrize("full", ["shutil.move", "zipfile.shutil.copyfileobj"])
def test_a_full_disk_leaves_no_partial_folder(serve, root, monkeypatch, full):
    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(full, no_space)
    with pytest.raises(InputError, match=f"cannot write {re.escape(str(root))}: No space left on device; free space"):
        fetch(root, serve())
    assert_nothing(root)


@pytest.mark.fault("two downloads of FracAtlas at the same time", "one download, both succeed")
def test_two_processes_at_once_download_once(serve, root, caplog):
    address = serve(pause=0.02)
    lines = []
    threads = [threading.Thread(target=lambda: lines.append(fetch(root, address))) for _ in range(2)]
    with caplog.at_level("INFO"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(address.requests) == 1
    assert f"waiting for another process that writes {root}" in caplog.text
    assert sorted("already in" in line for line in lines) == [False, True]
    assert_complete(root)


@pytest.mark.integration
@pytest.mark.fault("download of FracAtlas killed, started again", "the complete data folder")
def test_a_killed_download_is_repeated_by_the_next(serve, root):
    address = serve(pause=0.1)  # 1.9 s in total
    code = f"from fractatlas.data.download import *; download_fracatlas(Path({str(root)!r}), None, *sys.argv[1:])"
    command = [sys.executable, "-c", code, address.url, sha256(ARCHIVE)]
    for moment in (0.1, 1.0):
        process = subprocess.Popen(command)
        while not address.requests:
            time.sleep(0.01)
        time.sleep(moment)
        process.kill()
        process.wait()
        assert not root.exists()
        address.requests.clear()
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""
    assert_complete(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sha256": "b67e", "url": "https://localhost/"}, "--sha256 b67e: should be 64 hexadecimal digits"),
        ({"sha256": "0" * 64}, "--sha256 requires --archive or --url"),
        ({"url": "file:///etc/passwd"}, "cannot download FracAtlas: file:///etc/passwd: No connection adapters"),
        ({"url": "http://127.0.0.1:9/"}, "cannot download FracAtlas: http://127.0.0.1:9/: .*Connection refused"),
        ({"url": "http://[/"}, "cannot download FracAtlas: http://\\[/: .*Failed to parse"),
        ({"archive": Path("nowhere.zip")}, "--archive nowhere.zip: no such file"),
        ({"root": Path("file/FracAtlas")}, "cannot write .*(File exists|Not a directory)"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"^{message}") as failure:
        download_fracatlas(**{"root": tmp_path / "FracAtlas"} | options)
    assert "\n" not in str(failure.value)
