"""FracAtlas from figshare, fetched, verified and unpacked: ``python -m fractatlas.data.download``.

What is there is whole: the folder appears under its name only when every file in it has been read back from a verified
archive, and a run that was stopped goes on from where it was. CC BY 4.0, doi 10.6084/m9.figshare.22363012.
"""

import argparse
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import AcquireReturnProxy, FileLock, Timeout
from rich.filesize import decimal

from fractatlas import __version__
from fractatlas.data.archive import AGAIN, CHUNK, byte_bar, check, need_space, unpack, writing
from fractatlas.errors import InputError

PAUSES = (1.0, 3.0, 9.0)  # seconds before a cut line is tried again
TIMEOUT = 30.0  # seconds of silence that count as a cut line


@dataclass(frozen=True)
class Release:
    """One published archive: where it is, and what it must be.

    ``urls`` are tried in turn; ``md5`` and ``sha256`` are hexadecimal, ``bytes`` is its size. Of ``md5`` and ``bytes``
    what is ``None`` is not checked.
    """

    urls: tuple[str, ...]
    sha256: str
    md5: str | None = None
    bytes: int | None = None


# Article 22363012, version 7. The first address may answer a script with a challenge for browsers, the second does not.
FIGSHARE = Release(
    ("https://ndownloader.figshare.com/files/65518038", "https://api.figshare.com/v2/file/download/65518038"),
    sha256="b67ec2d290a022b3dcf47f78e9a37f7edcc80592c0571f439355bf00bd9f0e23",
    md5="fe9da2c7c285915ebee69dfdab8fd396",
    bytes=338_436_460,
)


class _Refused(Exception):
    """An address that does not give the file."""


class _Cut(_Refused):
    """A line that was cut; asking again goes on from there."""


def fetch(root: Path, release: Release = FIGSHARE, archive: Path | None = None) -> str:
    """Put FracAtlas into ``root``, unless it is there; two runs at once do it once.

    Args:
        root: a folder that is FracAtlas, or empty, or does not exist.
        release: what to fetch.
        archive: the release's archive where it is there already; it is only read.

    Returns:
        One line: what is in ``root`` now.

    Raises:
        InputError: it cannot be had, or is not the release, or ``root`` holds something else or is damaged.
    """
    root = root.resolve()
    part = root.with_name(f".{root.name}.{release.sha256[:8]}.zip.part")
    if not (said := check(root)):
        root.parent.mkdir(parents=True, exist_ok=True)
        with _alone(root):
            if not (said := check(root)):  # another run may have finished meanwhile
                if archive is None:
                    download(release, part)
                else:
                    verify(archive, release)
                said = f"FracAtlas is in {root}: {unpack(archive or part, root):,} files, verified"
    if archive is None and part.exists():
        part.unlink()
    return said


def download(release: Release, part: Path) -> None:
    """Fetch and verify a release's archive, going on from what ``part`` holds.

    Args:
        release: what to fetch.
        part: the file to complete.

    Raises:
        InputError: no address gave the file (what came is kept), or it is another file (it is deleted).
    """
    reasons = []
    with byte_bar("downloading") as show:
        for url in release.urls:
            try:
                _complete(url, release, part, show)
                break
            except _Refused as reason:
                reasons.append(f"{url}: {reason}")
        else:
            kept = f"; {decimal(_size(part))} are here, {AGAIN}" if _size(part) else ""
            raise InputError("\n".join(reasons) + kept + "; or fetch it by hand and name it: --archive FILE")
    try:
        verify(part, release)
    except InputError as error:
        part.unlink()
        raise InputError(f"{error}; it is deleted") from None


def verify(archive: Path, release: Release) -> None:
    """Compare an archive's size and hashes with the published ones.

    Raises:
        InputError: it is not there, or something differs.
    """
    if not archive.is_file():
        raise InputError(f"no file {archive}")
    hashes = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK):
            for known in hashes.values():
                known.update(chunk)
    found = {"bytes": archive.stat().st_size} | {name: known.hexdigest() for name, known in hashes.items()}
    for name, value in found.items():
        expected = getattr(release, name)
        if expected is not None and value != expected:
            raise InputError(f"{archive} is not the release: {name} is {value}, should be {expected}")


def _complete(url: str, release: Release, part: Path, show: Callable) -> None:
    """Ask an address for what ``part`` lacks; after a cut again, a few times for each time that something came."""
    most, waits = _size(part), iter(())
    while release.bytes is None or _size(part) != release.bytes:
        try:
            return _ask(url, release, part, show)
        except _Cut:
            if _size(part) > most:
                most, waits = _size(part), iter(PAUSES)
            if (pause := next(waits, None)) is None:
                raise
            time.sleep(pause)


def _ask(url: str, release: Release, part: Path, show: Callable) -> None:
    size = _size(part)
    headers = {"User-Agent": f"fractatlas/{__version__}"} | ({"Range": f"bytes={size}-"} if size else {})
    try:
        answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        answer = error
    except (OSError, HTTPException, ValueError) as error:
        raise _Cut(getattr(error, "reason", error)) from None
    with answer:
        first, total = (0, answer.length) if answer.status == 200 else _range(answer)
        if total and release.bytes and total != release.bytes:
            raise _Refused(f"offers {total:,} bytes, should be {release.bytes:,}")
        if answer.status == 416 and total == size > 0:
            return  # nothing is lacking
        if size and (answer.status == 416 or (answer.status == 206 and first != size)):
            part.unlink()
            return _ask(url, release, part, show)
        if answer.status == 200:
            size = 0
        elif answer.status != 206 or first != size:
            raise _Refused(f"answered {answer.status}, without the file")
        if total:
            need_space(2 * total - size, part.parent)  # radiographs take about as much room unpacked as packed
        _receive(answer, size, release.bytes or total, part, show)


def _receive(answer: HTTPResponse, size: int, total: int | None, part: Path, show: Callable) -> None:
    """Write an answer to ``part`` from byte ``size`` on, never beyond byte ``total``."""
    while total is None or size < total:
        try:
            chunk = answer.read1(min(CHUNK, total - size) if total else CHUNK)
        except (OSError, HTTPException) as error:
            raise _Cut(error) from None
        if not chunk:
            break
        with writing(part), part.open("ab" if size else "wb") as file:
            file.write(chunk)
        size += len(chunk)
        show(size, total)
    if size == 0 and not answer.length:
        raise _Refused("the answer is empty")
    if total and size < total:
        raise _Cut(f"the line was cut after {size:,} of {total:,} bytes")


def _range(answer: HTTPResponse | HTTPError) -> list[int | None]:
    """First byte and total number of bytes that Content-Range names."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", answer.headers.get("Content-Range", ""))
    return [number and int(number) for number in match.groups()] if match else [None, None]


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _alone(root: Path) -> AcquireReturnProxy:
    """One run at a time; a second one says that it waits."""
    file = root.with_name(f".{root.name}.lock")
    file.touch()  # says why where it cannot be made; the lock would wait for ever
    lock = FileLock(file)
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another run that fetches {root}", flush=True)
        return lock.acquire()


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch what the command line names, and answer a failure in one line."""
    parser = argparse.ArgumentParser(prog="python -m fractatlas.data.download", description=__doc__.partition(":")[0])
    default = os.environ.get("FRACATLAS_ROOT") or "data/FracAtlas"
    parser.add_argument("--root", type=Path, default=default, metavar="DIR", help="the folder to make (%(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, metavar="FILE", help="the zip archive, if it is there already")
    source.add_argument("--url", help="another address of the same archive")
    parser.add_argument("--sha256", metavar="HEX", help="of another release: the only thing that is then checked")
    given = parser.parse_args(argv)
    try:
        print(fetch(given.root, _release(given.url, given.sha256, given.archive), given.archive))
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.strerror or error}: {error.filename or 'no file named'}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {AGAIN}")


def _release(url: str | None, sha256: str | None, archive: Path | None) -> Release:
    """The release that the command line means."""
    urls = FIGSHARE.urls if url is None else (url,)
    if not all(url.startswith(("http://", "https://")) for url in urls):
        raise InputError(f"--url {url}: should begin with https:// or http://")
    if sha256 is None:
        return replace(FIGSHARE, urls=urls)
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256 {sha256}: should be 64 hexadecimal digits")
    if url is None and archive is None:
        raise InputError("--sha256 names another release: say where it is with --url or --archive")
    return Release(urls, sha256.lower())


if __name__ == "__main__":
    main()
