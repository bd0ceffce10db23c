"""Find the image files of a path, a folder, a pattern, a zip archive or a DICOMDIR, and read them."""

import glob
import os
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath

import pydicom
from PIL import Image
from pydicom.uid import MediaStorageDirectoryStorage

from fractatlas.data.file_kinds import START, is_dicom
from fractatlas.data.files import EXTENSIONS, is_image, is_image_start, read_start, walk
from fractatlas.data.image_limits import MAX_BYTES, UnreadableError
from fractatlas.data.images import read_content, read_radiograph
from fractatlas.errors import InputError
from fractatlas.wording import plural

ZIP_START = b"PK\x03\x04"
MAX_MEMBERS = 100_000
MAX_RATIO = 300  # of the size of an archive member to its compressed size
ALWAYS_READ = 2**24  # bytes; of a smaller member, the ratio is not limited


@dataclass
class Inputs:
    """The result of a search for images.

    Attributes:
        images: paths, relative if the search was given a relative path.
        errors: folders that could not be listed, with the reason.
        skipped: the number of skipped files by extension.
    """

    images: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def find_inputs(given: str) -> Inputs:
    """Find images.

    A single file is always accepted. A folder is searched with its subfolders. In folders, in archives and among the
    matches of a pattern (``*``, ``?``, ``[]``, ``**``), a file is an image if it has one of ``EXTENSIONS`` (upper or
    lower case), or if its first bytes are those of DICOM or of another image, array or volume, also of a kind that
    cannot be read. A pattern that ends in an extension takes every file that it matches. Hidden files and folders and
    ``DICOMDIR`` are skipped.

    A zip archive stands for the images in it, with paths such as ``archive.zip/folder/a.png``, and for members whose
    first bytes cannot be read. It is not unpacked to disk. A DICOMDIR stands for the images that it lists, which must
    be in its folder. Archives in folders are skipped.

    Args:
        given: a file, a folder or a pattern; tried in this order.

    Returns:
        The images without repetition, sorted by the components of their paths; of a DICOMDIR, in its order.

    Raises:
        InputError: nothing has this name, there is no image among the files, or an archive or DICOMDIR is damaged.
    """
    if os.path.isfile(given):
        start = read_start(given)
        if start.startswith(ZIP_START):
            return _find_in_archive(given)
        return _find_in_dicomdir(given) if _is_dicomdir(given, start) else Inputs(images=[given])
    inputs, suffix, is_folder = Inputs(), PurePath(given).suffix, os.path.isdir(given)

    def add_error(error: OSError) -> None:
        inputs.errors[error.filename] = error.strerror or type(error).__name__

    any_type = bool(suffix) and not glob.has_magic(suffix)
    require_match(given)
    for match in [given] if is_folder else glob.glob(given, recursive=True):
        if not os.path.isdir(match):
            _add_file(inputs, match, any_type)
        elif is_folder or not match.endswith(os.sep):  # ** also matches its parent folder, with a final separator
            for path in walk(match, add_error):
                _add_file(inputs, path, any_type=False)
    inputs.images = sorted(set(inputs.images), key=lambda path: path.split(os.sep))
    _require_images(inputs, given)
    return inputs


def read_input(path: str) -> Image.Image:
    """Read an image that ``find_inputs`` found; raise ``UnreadableError`` as ``read_radiograph`` does.

    Args:
        path: of a file, or of a member of a zip archive.
    """
    if not _split(path)[0]:
        return read_radiograph(Path(path))
    return read_content(read_input_content(path))


def read_input_content(path: str) -> bytes:
    """Read the content of a file that ``find_inputs`` found, or of a member of a zip archive.

    Raises:
        UnreadableError: the member is encrypted, damaged or too large.
        OSError: the file cannot be read.
    """
    archive, member = _split(path)
    if not archive:
        return Path(path).read_bytes()
    try:
        status = os.stat(archive)
        opened = _open_archive(archive, status.st_mtime_ns, status.st_size)
        info = opened.getinfo(member)
        if info.flag_bits & 1:
            raise UnreadableError("encrypted; unpack the archive with its password")
        if info.file_size > MAX_BYTES:
            raise UnreadableError(f"{info.file_size} bytes is above the limit of {MAX_BYTES}")
        if info.file_size > max(ALWAYS_READ, MAX_RATIO * info.compress_size):
            raise UnreadableError(f"compressed more than {MAX_RATIO} times; unpack the archive")
        return opened.read(info)
    except NotImplementedError:
        raise UnreadableError("zip compression method is not supported; unpack the archive") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, RuntimeError, ValueError):
        raise UnreadableError("damaged in the archive; download or copy the archive again") from None


def _require_images(inputs: Inputs, given: str) -> None:
    if not inputs.images and not inputs.errors:
        files, extensions = plural(inputs.skipped.total(), "file"), " ".join(sorted(EXTENSIONS))
        raise InputError(f"input={given}: no image in {files} (DICOM, {extensions}); give another input")


def _split(path: str) -> tuple[str, str]:
    """Return the zip archive and the member that a path stands for, or two empty strings."""
    if not os.path.lexists(path):
        for position, character in enumerate(path):
            if character == "/" and os.path.isfile(path[:position]):
                return path[:position], path[position + 1 :]
    return "", ""


@lru_cache(maxsize=1)
def _open_archive(archive: str, modified: int, size: int) -> zipfile.ZipFile:
    """Open an archive once for all its members; a changed archive is opened again. Threads can share the result."""
    return zipfile.ZipFile(archive)


def _find_in_archive(given: str) -> Inputs:
    inputs = Inputs()
    try:
        with zipfile.ZipFile(given) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if len(members) > MAX_MEMBERS:
                raise InputError(f"input={given}: {len(members):,} files, above the limit of {MAX_MEMBERS:,}; split it")
            for info in members:
                name = PurePath(info.filename)
                if any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in name.parts):
                    continue
                if name.suffix.lower() in EXTENSIONS or (
                    name.name.upper() != "DICOMDIR"
                    and ((start := _start_of_member(archive, info)) is None or is_image_start(start))
                ):
                    inputs.images.append(f"{given}/{info.filename}")
                else:
                    inputs.skipped[name.suffix.lower() or "no extension"] += 1
    except (zipfile.BadZipFile, OSError, ValueError):
        raise InputError(f"input={given}: damaged or incomplete zip archive; download or copy it again") from None
    for path, count in Counter(inputs.images).items():
        if count > 1:
            inputs.errors[path] = f"{count} files of the archive have this name; pack it again with different names"
    inputs.images = sorted(set(inputs.images) - inputs.errors.keys(), key=lambda path: path.split("/"))
    _require_images(inputs, given)
    return inputs


def _start_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes | None:
    """Return the first ``START`` bytes of a member; ``None`` if it is encrypted, damaged or not supported."""
    try:
        with archive.open(info) as file:
            return file.read(START)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError):
        return None


def _is_dicomdir(given: str, start: bytes) -> bool:
    if not is_dicom(start):
        return False
    try:
        meta = pydicom.filereader.read_file_meta_info(given)
    except Exception:  # pydicom raises several types of exception for damaged files
        return False
    return meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage


def _find_in_dicomdir(given: str) -> Inputs:
    inputs, folder = Inputs(), Path(given).parent
    try:
        records = [
            (str(record.get("DirectoryRecordType") or "record"), record.get("ReferencedFileID") or [])
            for record in pydicom.dcmread(given).DirectoryRecordSequence
        ]
    except Exception:  # pydicom raises several types of exception for damaged files
        raise InputError(f"input={given}: damaged DICOMDIR; give the folder instead") from None
    unnamed = 0
    for kind, reference in records:
        parts = [part for part in ([reference] if isinstance(reference, str) else reference) if part]
        if kind != "IMAGE":
            if parts:  # records of patients, studies and series have no file
                inputs.skipped[f"{kind} record"] += 1
        elif not parts:
            unnamed += 1
        elif (file := _file_of_record(folder, parts)) is not None:
            inputs.images.append(str(file))
        else:
            path = os.path.join(*([str(folder)] if str(folder) != "." else []), *parts)
            outside = os.path.isfile(path)
            inputs.errors[path] = (
                "listed in the DICOMDIR, but outside its folder; give the file itself as input" if outside
                else "listed in the DICOMDIR, but missing; copy the whole medium"
            )  # fmt: skip
    if unnamed:
        images = plural(unnamed, "image")
        inputs.errors[given] = f"{images} without a file name in the DICOMDIR; give the folder instead"
    inputs.images = list(dict.fromkeys(inputs.images))
    _require_images(inputs, given)
    return inputs


def _file_of_record(folder: Path, parts: list[str]) -> Path | None:
    """Return the file below ``folder`` with these components in upper or lower case; ``None`` if there is none."""
    file = folder
    for part in parts:
        names = {entry.name for entry in os.scandir(file)} if file.is_dir() else set()
        name = next((name for name in (part, part.lower(), part.upper()) if name in names), None)
        if name is None:
            return None
        file = file / name
    inside = file.resolve().is_relative_to(folder.resolve())
    return file if inside and file.is_file() else None


def require_match(given: str) -> None:
    """Require that a file or folder has this name or matches this pattern, without a search of folders for images.

    Raises:
        InputError: nothing matches.
    """
    if not os.path.exists(given) and next(glob.iglob(given, recursive=True), None) is None:
        raise InputError(f"input={given}: no file or folder matches; correct the path or pattern")


def _add_file(inputs: Inputs, path: str, any_type: bool) -> None:
    if any_type or is_image(path):
        inputs.images.append(path)
    else:
        inputs.skipped[PurePath(path).suffix.lower() or "no extension"] += 1
