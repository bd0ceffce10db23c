"""Download FracAtlas from figshare (CC BY 4.0, doi 10.6084/m9.figshare.22363012), verify and extract it."""

import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pooch
from filelock import AcquireReturnProxy, FileLock, Timeout
from requests import RequestException

from fractatlas import __version__
from fractatlas.errors import InputError
from fractatlas.progress_bar import waiting

TIMEOUT = 30  # seconds without data after which the next URL is tried
CHUNK = 2**20  # bytes

# Article 22363012, version 7. The URLs are tried in turn: the first can return a challenge for browsers.
URLS = ("https://ndownloader.figshare.com/files/65518038", "https://api.figshare.com/v2/file/download/65518038")
SHA256 = "b67ec2d290a022b3dcf47f78e9a37f7edcc80592c0571f439355bf00bd9f0e23"


def download_fracatlas(
    root: Path, archive: Path | None = None, url: str | None = None, sha256: str | None = None
) -> str:
    """Write FracAtlas to ``root``, completely or not at all; of several processes, one downloads and the others wait.

    Args:
        root: folder that does not exist or is empty. If it contains FracAtlas already, nothing is changed.
        archive: zip archive to use instead of a download.
        url: address to use instead of ``URLS``.
        sha256: SHA-256 of another release, in hexadecimal digits. It is the only check of the archive.

    Returns:
        One line that states what is in ``root``.

    Raises:
        InputError: no address returns the archive, the archive has another SHA-256 or is not FracAtlas, ``root``
            contains other files, or the disk is full.
    """
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256 {sha256}: should be 64 hexadecimal digits")
    if sha256 and not (archive or url):
        raise InputError("--sha256 requires --archive or --url; add one, or omit --sha256")
    expected = (sha256 or SHA256).lower()
    root = root.resolve()
    if existing := _existing(root):
        return existing
    partial, lock = root.with_name(f".{root.name}.partial"), root.with_name(f".{root.name}.lock")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # raises an error if the folder is not writable, where FileLock could wait for ever
        with _wait_for(FileLock(lock), root):
            if existing := _existing(root):  # another process may have finished in the meantime
                return existing
            shutil.rmtree(partial, ignore_errors=True)  # from a killed process
            try:
                partial.mkdir()
                if archive is None:
                    archive = _download((url,) if url else URLS, expected, partial / "archive.zip")
                elif not archive.is_file():
                    raise InputError(f"--archive {archive}: no such file; correct the path")
                elif (actual := pooch.file_hash(str(archive))) != expected:
                    raise InputError(f"{archive}: SHA-256 is {actual}, should be {expected}; download it again")
                folder = _extract(archive, partial / "extracted")
                files = sum(path.is_file() for path in folder.rglob("*"))
                folder.rename(root)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {root}: {reason}; free space or use another folder (--root DIR)") from None
    return f"FracAtlas is in {root}: {files:,} files, SHA-256 of the archive verified"


def _existing(root: Path) -> str:
    """Return a line if ``root`` contains FracAtlas, ``""`` if it is empty or does not exist."""
    if (root / "dataset.csv").is_file():
        return f"FracAtlas is already in {root}; nothing is downloaded or checked"
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is not a folder; use another path (--root DIR)")
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root} is neither empty nor FracAtlas (no dataset.csv); use another folder (--root DIR)")
    return ""


def _wait_for(lock: FileLock, root: Path) -> AcquireReturnProxy:
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        with waiting("waiting for another process", f" that writes {root}"):
            return lock.acquire()


def _download(urls: Sequence[str], sha256: str, file: Path) -> Path:
    """Download the first of ``urls`` that returns a file with this SHA-256."""
    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        chunk_size=CHUNK,
        headers={"User-Agent": f"fractatlas/{__version__}"},
        timeout=TIMEOUT,
    )
    reasons = []
    for url in urls:
        try:
            return Path(pooch.retrieve(url, f"sha256:{sha256}", file.name, file.parent, downloader=downloader))
        except RequestException as error:
            answer = error.response
            reasons.append(f"{url}: {_innermost(error) if answer is None else f'HTTP status {answer.status_code}'}")
        except ValueError:  # from pooch
            reasons.append(f"{url}: the SHA-256 of the file is not {sha256}")
    raise InputError(f"cannot download FracAtlas: {'; '.join(reasons)}; get it with a browser, then use --archive FILE")


def _innermost(error: BaseException) -> BaseException:
    """Return the exception that caused ``error``: its message is short, those of requests are not."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _extract(archive: Path, folder: Path) -> Path:
    """Extract an archive; return the folder in it that contains ``dataset.csv`` and ``images``."""
    try:
        with zipfile.ZipFile(archive) as members:
            members.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive}: cannot be read as a zip archive: {error}; download it again") from None
    folders = [path.parent for path in folder.rglob("dataset.csv") if (path.parent / "images").is_dir()]
    if len(folders) != 1:
        raise InputError(
            f"{archive} has {len(folders)} folders with dataset.csv and images, not 1; use another archive"
        )
    return folders[0]
