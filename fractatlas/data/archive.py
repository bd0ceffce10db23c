"""An archive of FracAtlas, unpacked whole or not at all, and a folder held against what was unpacked into it."""

import csv
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fractatlas.errors import InputError

MANIFEST = ".release.csv"  # in the unpacked folder: path,bytes,crc32 of every file
MOST_MEMBERS = 50_000
MOST_BYTES = 20e9  # unpacked
MOST_EXPANSION = 20  # unpacked bytes for each byte of the archive
CHUNK = 2**20  # bytes
AGAIN = "running it again goes on from there"


def check(root: Path) -> str:
    """Compare a folder with its own manifest, file by file.

    Returns:
        One line that says what is there; empty if there is nothing yet.

    Raises:
        InputError: files are missing or changed, or the folder is something else.
    """
    if not root.exists():
        return ""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: name another with --root")
    if not (root / MANIFEST).is_file():
        if (root / "dataset.csv").is_file():
            return f"{root} was unpacked by hand (no {MANIFEST} in it): left as it is, not checked"
        if any(root.iterdir()):
            raise InputError(f"{root} is neither empty nor FracAtlas (no dataset.csv in it): name another with --root")
        return ""
    listed = _read_manifest(root / MANIFEST)
    wrong = [path for path, found in listed.items() if _fingerprint(root / path) != found] if listed else [MANIFEST]
    if wrong:
        named = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else "")
        raise InputError(f"{root} is damaged; missing or changed: {named}\nDelete that folder and run this again")
    return f"FracAtlas is already in {root}: {len(listed):,} files, none missing or changed"


def unpack(archive: Path, root: Path) -> int:
    """Unpack the folder of ``archive`` that holds ``dataset.csv`` and ``images`` to ``root``, whole or not at all.

    Returns:
        How many files.

    Raises:
        InputError: the archive is damaged, hostile or something else, or the disk is full.
    """
    scratch = root.with_name(f".{root.name}.unpacking")
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        with zipfile.ZipFile(archive) as packed:
            members = _members(packed.infolist(), archive)
            total, done = sum(member.file_size for member in members.values()), 0
            need_space(total + 4096 * len(members), root.parent)  # each file fills whole blocks
            with byte_bar("unpacking") as show, writing(root):
                scratch.mkdir()
                for path, member in members.items():
                    (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                    # zipfile reads no more than the declared size, and compares the CRC-32 at its end.
                    with packed.open(member) as source, (scratch / path).open("xb") as file:
                        shutil.copyfileobj(source, file, CHUNK)
                        if file.tell() != member.file_size:
                            raise zipfile.BadZipFile(f"{path} is shorter than declared")
                    done += member.file_size
                    show(done, total)
                with (scratch / MANIFEST).open("x", newline="", encoding="utf-8") as file:
                    rows = ((path, member.file_size, f"{member.CRC:08x}") for path, member in members.items())
                    csv.writer(file).writerows([("path", "bytes", "crc32"), *rows])
                scratch.rename(root)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(f"{archive} is no sound zip archive: {error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(members)


def _members(infos: list[zipfile.ZipInfo], archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of FracAtlas by their path in its folder, once nothing in the archive can do harm."""
    total, size = sum(info.file_size for info in infos), archive.stat().st_size
    if len(infos) > MOST_MEMBERS:
        raise InputError(f"{archive} is refused: {len(infos):,} members, more than {MOST_MEMBERS:,}")
    if total > min(MOST_BYTES, MOST_EXPANSION * size):
        raise InputError(f"{archive} is refused: {decimal(size)} would unpack to {decimal(total)}")
    files, seen = {}, set()
    for info in infos:
        name = info.orig_filename  # zipfile cuts the other one at a NUL
        path = PurePosixPath(name)
        harm = {
            "has no name": not path.parts,
            "leads out": path.is_absolute() or ".." in path.parts or re.search(r"^[A-Za-z]:|[\\\0]", name),
            "is a link or a device": stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR),
            "is encrypted": info.flag_bits & 0x41,
            "is packed in an unusual way": info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
            "is in it twice": path in seen,
        }
        if found := [reason for reason, holds in harm.items() if holds]:
            raise InputError(f"{archive} is refused: its member {name!r} {found[0]}")
        seen.add(path)
        if not info.is_dir() and path.parts[:1] != ("__MACOSX",):
            files[path] = info
    tops = [path.parent for path in files if path.name == "dataset.csv" and len(path.parts) <= 2]
    tops = [top for top in tops if any(top / "images" in path.parents for path in files)]
    if len(tops) != 1:
        raise InputError(f"{archive} is not FracAtlas: {len(tops) or 'no'} folders with dataset.csv and images in it")
    return {str(path.relative_to(tops[0])): info for path, info in files.items() if tops[0] in path.parents}


def need_space(needed: int, folder: Path) -> None:
    """Refuse to begin what the disk has no room for: ``needed`` bytes in ``folder``.

    Raises:
        InputError: there is less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder} has {decimal(free)} free, {decimal(needed)} are needed: free some, or name another with --root"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Answer a failure to write in one line.

    Raises:
        InputError: instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; once that is mended, {AGAIN}") from None


@contextmanager
def byte_bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A function that shows bytes done and in all, where someone is watching; nothing in a log file."""
    columns = TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _fingerprint(file: Path) -> tuple[int, int] | None:
    """Size in bytes and CRC-32."""
    if not file.is_file():
        return None
    content = file.read_bytes()
    return len(content), zlib.crc32(content)


def _read_manifest(file: Path) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 by path; empty if the manifest itself is damaged."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = {row["path"]: (int(row["bytes"]), int(row["crc32"], 16)) for row in csv.DictReader(lines)}
    except (ValueError, KeyError, TypeError, csv.Error):
        return {}
    return rows if "dataset.csv" in rows else {}
