"""Against a server on this machine that does what servers and lines do, with a small archive as published."""

import errno
import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fractatlas.data import archive as archives
from fractatlas.data import download
from fractatlas.data.archive import MANIFEST, check
from fractatlas.data.download import FIGSHARE, Release, fetch, main
from fractatlas.errors import InputError


@pytest.fixture(autouse=True)
def no_data_folder_named(monkeypatch):
    monkeypatch.delenv("FRACATLAS_ROOT", raising=False)


Usage = namedtuple("Usage", "total used free")
NOTHING = {"content": b"", "ranges": False}
FILES = {
    "dataset.csv": b"image_id,fractured\n",
    "Annotations/COCO JSON/COCO_fracture_masks.json": b"{}",
    "Utilities/Fracture Split/empty.csv": b"",
}
for number in range(40):
    folder = ("Fractured", "Non_fractured")[number % 2]
    FILES[f"images/{folder}/IMG{number:07d}.jpg"] = random.Random(number).randbytes(7_000 + number)


@dataclass
class Address:
    """What one address of the server does, and the Range headers that it was asked with (``None``: the whole)."""

    url: str
    content: bytes
    status: int = 0  # instead of the content
    location: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes of the next answer, of the one after it, ...
    length: str | None = ""  # what Content-Length says instead of the truth; None leaves it out
    shift: int = 0  # how far from the asked range the given one starts
    pause: float = 0.0  # seconds for each 16 KiB
    asked: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        address = self.server.addresses[self.path]
        wanted = self.headers["Range"]
        address.asked.append(wanted)
        start, end = int(wanted[6:-1]) if wanted and address.ranges else 0, len(address.content)
        status = address.status or (416 if start >= end > 0 else 206 if start else 200)
        body = address.content[start:] if status in (200, 206) else b""
        self.send_response(status)
        if address.location:
            self.send_header("Location", address.location)
        if status in (206, 416):
            given = f"{start + address.shift}-{end - 1}" if status == 206 else "*"
            self.send_header("Content-Range", f"bytes {given}/{end}")
        if address.length is not None:
            self.send_header("Content-Length", address.length or str(len(body)))
        self.end_headers()
        if address.cuts:
            body = body[: address.cuts.pop(0)]
        try:
            for position in range(0, len(body), 2**14):
                self.wfile.write(body[position : position + 2**14])
                time.sleep(address.pause)
        except OSError:
            pass  # the other side has gone

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(archive, monkeypatch):
    """Put up an address that serves the archive, or does what is said: ``serve(status=404)``."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.addresses = {}
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def put(**behaviour) -> Address:
        path = f"/{len(server.addresses)}"
        url = f"http://127.0.0.1:{server.server_port}{path}"
        server.addresses[path] = Address(url, **{"content": archive.read_bytes()} | behaviour)
        return server.addresses[path]

    yield put
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """300 kB as published, all in one folder, with what a Mac adds."""
    file = tmp_path_factory.mktemp("archive") / "FracAtlas.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("FracAtlas/", b"")
        for path, content in FILES.items():
            packed.writestr(f"FracAtlas/{path}", content)
        packed.writestr("__MACOSX/FracAtlas/._dataset.csv", b"Mac")
    return file


@pytest.fixture(scope="session")
def published(archive):
    """The release that the archive is, at some addresses."""
    content = archive.read_bytes()
    hashes = {name: hashlib.new(name, content).hexdigest() for name in ("md5", "sha256")}
    return lambda *addresses: Release(tuple(address.url for address in addresses), bytes=len(content), **hashes)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data" / "FracAtlas"


@pytest.fixture
def there(archive, published, root) -> Path:
    """A folder that was unpacked by an earlier run."""
    fetch(root, published(), archive)
    return root


def part(root: Path) -> Path:
    """What has been downloaded so far."""
    (found,) = root.parent.glob(".FracAtlas.*.zip.part")
    return found


def begin(root: Path, release: Release, content: bytes) -> None:
    """Leave what a run that was stopped leaves."""
    root.parent.mkdir(parents=True)
    root.with_name(f".{root.name}.{release.sha256[:8]}.zip.part").write_bytes(content)


def assert_whole(root: Path) -> None:
    """Every file is there as published, and nothing else is, inside or beside the folder."""
    assert sorted(path.name for path in root.parent.iterdir()) == [".FracAtlas.lock", "FracAtlas"]
    found = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert found.pop(MANIFEST).count(b"\n") == 1 + len(FILES)
    assert found == FILES


def assert_nothing(root: Path, *kept: str) -> None:
    """No folder, no temporary folder, no part; only the lock and what is named."""
    assert sorted(path.name for path in root.parent.iterdir()) == sorted([".FracAtlas.lock", *kept])


def command(root: Path, address: Address, archive: Path) -> list[str]:
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return ["-m", "fractatlas.data.download", f"--root={root}", f"--url={address.url}", f"--sha256={sha256}"]


def test_a_fresh_folder_is_the_archive_s(serve, published, root):
    address = serve()
    assert fetch(root, published(address)) == f"FracAtlas is in {root}: 43 files, verified"
    assert_whole(root)
    assert address.asked == [None]
    assert stat.S_IMODE(root.stat().st_mode) == stat.S_IMODE(root.parent.stat().st_mode)


def test_an_empty_folder_and_a_link_to_one_are_filled(serve, published, root):
    root.mkdir(parents=True)
    link = root.parent.parent / "link"
    link.symlink_to(root)
    fetch(link, published(serve()))
    assert link.is_symlink()
    assert_whole(root)


@pytest.mark.parametrize("redirected", [False, True])
def test_a_download_that_was_stopped_asks_only_for_the_rest(serve, published, root, archive, redirected):
    address = serve()
    begin(root, published(), archive.read_bytes()[:100_000])
    fetch(root, published(serve(status=302, location=address.url) if redirected else address))
    assert address.asked == ["bytes=100000-"]
    assert_whole(root)


def test_a_part_that_is_the_whole_archive_is_not_asked_for(serve, published, root, archive):
    address = serve()
    begin(root, published(), archive.read_bytes())
    fetch(root, published(address))
    assert address.asked == []
    assert_whole(root)


def test_a_line_that_is_cut_is_taken_up_where_it_broke(serve, published, root):
    address = serve(cuts=[50_000, 60_000, 0, 0, 1, 0])
    fetch(root, published(address))
    assert address.asked == [None, "bytes=50000-", *["bytes=110000-"] * 3, *["bytes=110001-"] * 2]
    assert_whole(root)


def test_a_line_that_stays_cut_leaves_a_part_to_go_on_from(serve, published, root):
    address = serve(cuts=[50_000, 0, 0, 0])
    with pytest.raises(InputError, match=r"cut after 50,000 of .* bytes; 50.0 kB are here, running it again goes on"):
        fetch(root, published(address))
    assert_nothing(root, part(root).name)
    fetch(root, published(address))
    assert address.asked == [None, *["bytes=50000-"] * 4]
    assert_whole(root)


@pytest.mark.parametrize("behaviour", [{"ranges": False}, {"shift": 7}, {"shift": -7}])
def test_a_server_without_the_asked_range_is_asked_for_the_whole(serve, published, root, archive, behaviour):
    address = serve(**behaviour)
    begin(root, published(), archive.read_bytes()[:100_000])
    fetch(root, published(address))
    assert address.asked in (["bytes=100000-"], ["bytes=100000-", None])
    assert_whole(root)


def test_a_server_without_ranges_on_a_line_that_is_always_cut_is_given_up(serve, published, root):
    address = serve(ranges=False, cuts=[50_000] * 9)
    with pytest.raises(InputError, match="the line was cut"):
        fetch(root, published(address))
    assert len(address.asked) == 1 + len(download.PAUSES)


def test_a_part_longer_than_the_archive_is_dropped(serve, published, root, archive):
    address = serve()
    begin(root, published(), archive.read_bytes() + b"more")
    fetch(root, published(address))
    assert address.asked[1:] == [None]
    assert_whole(root)


@pytest.mark.parametrize("answered", [{"status": 202}, NOTHING, NOTHING | {"length": None}])
def test_the_second_address_is_asked_when_the_first_gives_no_file(serve, published, root, archive, answered):
    first, second = serve(**answered), serve()
    begin(root, published(), archive.read_bytes()[:100_000])
    fetch(root, published(first, second))
    assert (first.asked, second.asked) == (["bytes=100000-"], ["bytes=100000-"])
    assert_whole(root)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"status": 404}, "answered 404, without the file"),
        ({"status": 403}, "answered 403, without the file"),
        ({"status": 500}, "answered 500, without the file"),
        ({"status": 416}, "answered 416,"),
        ({"status": 202}, "answered 202,"),
        ({"content": b""}, "the answer is empty"),
        ({"length": "1000"}, "offers 1,000 bytes, should be"),
        ({"length": "1000000"}, "offers 1,000,000 bytes, should be"),
        ({"content": b"<html>please prove that you are human</html>"}, "offers 44 bytes, should be"),
        ({"status": 302, "location": "file:///etc/passwd"}, "answered 302,"),
    ],
)
def test_an_answer_that_is_not_the_file_is_named_and_leaves_nothing(serve, published, root, behaviour, says):
    address = serve(**behaviour)
    with pytest.raises(InputError, match=says) as failure:
        fetch(root, published(address))
    assert str(failure.value).startswith(address.url)
    assert "\n" not in str(failure.value)
    assert_nothing(root)


def test_no_network_is_told_at_once_for_every_address(monkeypatch, root):
    def no_network(*_, **__):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("socket.create_connection", no_network)
    with pytest.raises(InputError, match=r"ndownloader.*unreachable\nhttps://api.*unreachable; or fetch it by hand"):
        fetch(root, FIGSHARE)
    assert_nothing(root)


def test_nothing_beyond_the_release_s_size_is_read(serve, published, root, archive):
    fetch(root, published(serve(content=archive.read_bytes() + bytes(10**7), length=None)))
    assert_whole(root)


@pytest.mark.parametrize("name", ["md5", "sha256"])
def test_another_file_of_the_same_size_is_deleted(serve, published, root, archive, name):
    wrong = archive.read_bytes()[:-1] + b"x"
    got, expected = (hashlib.new(name, content).hexdigest() for content in (wrong, archive.read_bytes()))
    release = published(serve(content=wrong))
    if name == "sha256":
        release = Release(release.urls, release.sha256)
    with pytest.raises(InputError, match=f"{name} is {got}, should be {expected}; it is deleted$"):
        fetch(root, release)
    assert_nothing(root)


def test_a_folder_that_is_there_is_verified_without_the_network(there, published):
    assert fetch(there, published()) == f"FracAtlas is already in {there}: 43 files, none missing or changed"
    assert_whole(there)


def test_a_damaged_folder_is_named_and_left(there, published):
    (there / "dataset.csv").write_bytes(FILES["dataset.csv"].upper())
    (there / "images/Fractured/IMG0000000.jpg").unlink()
    with pytest.raises(InputError) as failure:
        fetch(there, published())
    named = "dataset.csv, images/Fractured/IMG0000000.jpg"
    assert (
        str(failure.value) == f"{there} is damaged; missing or changed: {named}\nDelete that folder and run this again"
    )
    shutil.rmtree(there / "images")
    with pytest.raises(InputError, match=r"IMG0000001.jpg and 38 more\n"):
        fetch(there, published())


@pytest.mark.parametrize("content", [b"", b"path,bytes,crc32\n", b"path,bytes,crc32\ndataset.csv,many\n", b"\xff\n\0"])
def test_a_damaged_manifest_proves_nothing(there, content):
    (there / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match=f"is damaged; missing or changed: {MANIFEST}"):
        check(there)


def test_a_folder_unpacked_by_hand_is_left_as_it_is(there, published):
    (there / MANIFEST).unlink()
    (there / "images/Fractured/IMG0000000.jpg").unlink()
    assert "was unpacked by hand" in fetch(there, published())
    assert not (there / MANIFEST).exists()


def test_a_folder_of_other_things_is_not_touched(root, published):
    root.mkdir(parents=True)
    (root / "thesis.tex").write_text("mine")
    for spoilt, says in ((root, "neither empty nor FracAtlas"), (root / "thesis.tex", "is not a folder")):
        with pytest.raises(InputError, match=says):
            fetch(spoilt, published())
    assert [path.name for path in root.parent.rglob("*")] == ["FracAtlas", "thesis.tex"]


def test_an_archive_that_is_there_already_stays(archive, published, root):
    before = archive.read_bytes(), archive.stat().st_mtime_ns
    fetch(root, published(), archive)
    assert_whole(root)
    assert (archive.read_bytes(), archive.stat().st_mtime_ns) == before


def test_an_archive_that_is_not_the_release_stays_and_is_not_unpacked(archive, root):
    with pytest.raises(SystemExit) as exit:
        main([f"--root={root}", f"--archive={archive}"])
    assert str(exit.value).startswith(f"error: {archive} is not the release: bytes is {archive.stat().st_size}, should")
    assert archive.is_file()
    assert_nothing(root)


def packed(file: Path, *members: tuple[str, bytes, dict]) -> Path:
    """A FracAtlas with more members, whose fields of ``ZipInfo`` are as given."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in FILES.items():
            archive.writestr(f"FracAtlas/{path}", content)
        for name, content, changes in members:
            info = zipfile.ZipInfo()
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
            for key, value in changes.items():
                setattr(info, key, value)
    return file


@pytest.mark.fault("archive that leaves its folder, links, bombs", "refused, nothing written")
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "content", "changes", "says"),
    [
        ("x", b"x", {"filename": ""}, "has no name"),
        ("../outside", b"x", {}, "leads out"),
        ("FracAtlas/../../outside", b"x", {}, "leads out"),
        ("__MACOSX/../../outside", b"x", {}, "leads out"),
        ("/outside", b"x", {}, "leads out"),
        ("C:outside", b"x", {}, "leads out"),
        ("FracAtlas\\..\\outside", b"x", {}, "leads out"),
        ("FracAtlas/a\0b", b"x", {}, "leads out"),
        ("FracAtlas/link", b"/etc/passwd", {"external_attr": 0o120777 << 16}, "is a link or a device"),
        ("FracAtlas/pipe", b"", {"external_attr": 0o010644 << 16}, "is a link or a device"),
        ("FracAtlas/secret", b"x", {"flag_bits": 1}, "is encrypted"),
        ("FracAtlas/dataset.csv", b"x", {}, "is in it twice"),
        ("FracAtlas//images/./Fractured/IMG0000000.jpg", b"x", {}, "is in it twice"),
        ("FracAtlas/a", b"x", {"compress_type": zipfile.ZIP_LZMA}, "is packed in an unusual way"),
        ("FracAtlas/bomb", bytes(10**7), {}, "would unpack to 10.3 MB"),
        ("FracAtlas/bomb", b"x", {"file_size": 30 * 10**9}, "would unpack to 30.0 GB"),
        ("FracAtlas/liar", bytes(10**5), {"file_size": 10}, "no sound zip archive: Bad CRC-32"),
        ("FracAtlas/liar", bytes(10**3), {"file_size": 10**4}, "liar is shorter than declared"),
        ("FracAtlas/changed", b"x" * 10**3, {"CRC": 1}, "no sound zip archive: Bad CRC-32"),
        ("FracAtlas/dataset.csv/within", b"x", {}, "cannot write"),
        ("dataset.csv", b"x", {}, None),
        ("images/Fractured/IMG0000000.jpg", b"x", {}, None),
    ],
)
def test_hostile_archives_are_refused_and_nothing_is_written(tmp_path, root, name, content, changes, says):
    root.parent.mkdir()
    archive = packed(tmp_path / "hostile.zip", (name, content, changes))
    if says is None:  # beside the folder: left out
        assert archives.unpack(archive, root) == len(FILES)
        return
    with pytest.raises(InputError, match=says):
        archives.unpack(archive, root)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "hostile.zip"]


def test_too_many_members_are_refused(archive, root, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 40)
    with pytest.raises(InputError, match="45 members, more than 40"):
        archives.unpack(archive, root)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["FracAtlas/dataset.csv"], "no folders with"),
        (["a/FracAtlas/dataset.csv", "a/FracAtlas/images/1.jpg"], "no folders with"),
        (["a/dataset.csv", "a/images/1.jpg", "b/dataset.csv", "b/images/1.jpg"], "2 folders with"),
        (["dataset.csv", "images/1.jpg", "__MACOSX/._dataset.csv"], None),
    ],
)
def test_one_folder_of_the_archive_is_fracatlas(tmp_path, root, names, says):
    root.parent.mkdir()
    file = tmp_path / "other.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    if says is None:
        assert archives.unpack(file, root) == 2
        assert "2 files" in check(root)
        return
    with pytest.raises(InputError, match=f"is not FracAtlas: {says}"):
        archives.unpack(file, root)


@pytest.mark.parametrize("spoil", [lambda content: b"no zip", lambda content: content[:-1000], lambda content: b""])
def test_what_is_no_zip_is_refused(tmp_path, archive, root, spoil):
    file = tmp_path / "other.zip"
    file.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(InputError, match="other.zip is no sound zip archive"):
        archives.unpack(file, root)


def test_too_small_a_disk_is_told_before_anything_is_written(serve, published, root, archive, monkeypatch):
    free = archive.stat().st_size * 2 - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, free))
    with pytest.raises(InputError, match=r"data has \d+.\d kB free, \d+.\d kB are needed"):
        fetch(root, published(serve()))
    assert_nothing(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 200_000))
    with pytest.raises(InputError, match="has 200.0 kB free"):
        fetch(root, published(), archive)
    assert_nothing(root)


@pytest.mark.fault("disk that fills up while unpacking", "one line, no half folder")
@pytest.mark.parametrize("full", [".zip.part", "IMG0000020.jpg", MANIFEST])
def test_a_disk_that_fills_up_leaves_no_half_folder(serve, published, root, monkeypatch, full):
    class Full:
        """A file on a disk that is full after 100 kB."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            if self.file.tell() > 100_000 or not full.endswith("part"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

    real = Path.open

    def opened(path, mode="r", *arguments, **options):
        file = real(path, mode, *arguments, **options)
        return Full(file) if path.name.endswith(full) and mode[0] in "axw" else file

    address = serve()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(InputError, match=r"cannot write .*No space left on device; once that is mended, running"):
            fetch(root, published(address))
    kept = part(root)
    assert_nothing(root, kept.name)
    size = kept.stat().st_size
    fetch(root, published(address))
    assert address.asked == [None, *([f"bytes={size}-"] if full.endswith("part") else [])]
    assert_whole(root)


@pytest.mark.fault("two downloads at once", "fetched once")
def test_two_runs_at_once_fetch_once(serve, published, root, capsys):
    address = serve(pause=0.02)
    said = []
    runs = [threading.Thread(target=lambda: said.append(fetch(root, published(address)))) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert address.asked == [None]
    assert capsys.readouterr().out == f"waiting for another run that fetches {root}\n"
    assert sorted("already in" in line for line in said) == [False, True]
    assert_whole(root)


@pytest.mark.fault("download killed, started again", "the whole data folder")
@pytest.mark.parametrize(
    ("event", "name"),
    [
        ("socket.connect", ""),
        ("os.mkdir", ".unpacking"),
        ("open", "IMG0000020.jpg"),
        ("open", MANIFEST),
        ("os.rename", ".unpacking"),
        ("os.remove", ".zip.part"),
    ],
)
def test_a_run_killed_at_a_turning_point_is_made_good_by_the_next(serve, archive, root, event, name):
    address = serve()
    kill = (
        "import os, runpy, sys\n"
        f"hook = lambda event, args: event == {event!r} and {name!r} in str(args) and os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(hook)\n"
        f"sys.argv = {command(root, address, archive)[1:]}\n"
        "runpy.run_module('fractatlas.data.download', run_name='__main__')\n"
    )
    killed = subprocess.run([sys.executable, "-c", kill], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert root.exists() == (event == "os.remove")
    main(command(root, address, archive)[2:])
    assert address.asked in ([None], [None, f"bytes={archive.stat().st_size}-"])
    assert_whole(root)


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_with_the_whole(serve, archive, root, kills):
    moments = random.Random(kills)
    address = serve(pause=0.02)
    run = [sys.executable, *command(root, address, archive)]
    for _ in range(kills):
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 1.0))
        process.kill()
        process.wait()
        if root.exists():
            assert "none missing" in check(root)
            shutil.rmtree(root)
    last = subprocess.run(run, capture_output=True, text=True)
    assert (last.returncode, last.stderr) == (0, "")
    assert_whole(root)


def test_ctrl_c_is_answered_in_one_line(serve, archive, root):
    address = serve(pause=0.5)
    run = [sys.executable, *command(root, address, archive)]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not address.asked:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "interrupted: running it again goes on from there\n")
    assert process.returncode == 1


def test_a_failure_is_one_line_on_stderr_and_status_1(serve, archive, root):
    address = serve(status=404)
    ended = subprocess.run([sys.executable, *command(root, address, archive)], capture_output=True, text=True)
    said = f"error: {address.url}: answered 404, without the file; or fetch it by hand and name it: --archive FILE\n"
    expected = (1, "", said)
    assert (ended.returncode, ended.stdout, ended.stderr) == expected


def test_the_folder_is_fracatlas_root_or_else_in_data(serve, archive, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRACATLAS_ROOT", raising=False)
    _, _, _, url, sha256 = command(root, serve(), archive)
    main([url, sha256])
    assert_whole(root)
    main([url, sha256])
    assert f"already in {root}" in capsys.readouterr().out
    monkeypatch.setenv("FRACATLAS_ROOT", str(tmp_path / "named" / "FracAtlas"))
    main([f"--archive={archive}", sha256])
    assert_whole(tmp_path / "named" / "FracAtlas")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sha256=b67e", "--url=https://localhost/"], "--sha256 b67e: should be 64 hexadecimal digits"),
        (["--sha256=" + "0" * 64], "--sha256 names another release: say where it is with --url or --archive"),
        (["--url=file:///etc/passwd"], "--url file:///etc/passwd: should begin with https:// or http://"),
        (["--url=http://[/"], "http://[/: Invalid IPv6 URL"),
        (["--url=http://localhost:port/"], "http://localhost:port/: nonnumeric port: 'port'"),
        (["--archive=nowhere.zip"], "no file nowhere.zip"),
        (["--root=file/FracAtlas"], "File exists: "),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit:
        main(options)
    assert str(exit.value).startswith(f"error: {says}")
    assert "\n" not in str(exit.value)


def test_no_model_is_needed_to_download():
    lines = "import sys, fractatlas.data.download; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lines]).returncode == 0


def test_a_lock_that_cannot_be_made_is_an_error_and_no_wait(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        fetch(tmp_path / "FracAtlas")
