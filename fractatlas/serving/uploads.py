"""Receive uploaded files in memory, within limits."""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import PurePosixPath

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

FIELD = "files"
FILES_NEEDED = f"send one or several files in the multipart field '{FIELD}'"


class RequestError(Exception):
    """Report why a request, or one of its files, is refused.

    Args:
        status: of the HTTP response.
        problem: what is wrong.
        remedy: what the client can do.
    """

    def __init__(self, status: int, problem: str, remedy: str):
        super().__init__(problem)
        self.status, self.problem, self.remedy = status, problem, remedy

    def content(self) -> dict[str, str]:
        """Return the error as it is sent."""
        return {"problem": self.problem, "remedy": self.remedy}


@dataclass(frozen=True)
class Upload:
    """An uploaded file; ``name`` is that of ``displayed_name``."""

    name: str
    content: bytes


class _MemoryParser(MultiPartParser):
    """Starlette's parser, whose temporary files are buffers that are never moved to disk."""

    spool_max_size = 0  # of ``tempfile.SpooledTemporaryFile``: no limit


async def receive(request: Request, max_bytes: int, max_files: int) -> list[Upload]:
    """Read the files of a multipart request into memory.

    Raises:
        RequestError: the request is not multipart (415), is malformed or has no file (400), or has too many bytes or
            files (413). A request with too many bytes is not read further.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError(
            415, f"content type {_shown(kind) or 'missing'}, should be multipart/form-data", FILES_NEEDED
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_many_bytes(max_bytes)
    # The parser counts fields without a file name, too; none is needed.
    parser = _MemoryParser(request.headers, _limited(request, max_bytes), max_files=max_files + 1, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if parser._current_files > max_files:
            raise _too_many_files(max_files) from None
        raise RequestError(400, f"malformed multipart request: {error.message}", FILES_NEEDED) from None
    except ClientDisconnect:
        raise RequestError(400, "the upload was interrupted", "repeat the request") from None
    try:
        files = [value for name, value in form.multi_items() if name == FIELD and isinstance(value, UploadFile)]
        if len(files) > max_files:
            raise _too_many_files(max_files)
        if not files:
            raise RequestError(400, f"the request has no file in the field {FIELD!r}", FILES_NEEDED)
        return [Upload(displayed_name(file.filename), await file.read()) for file in files]
    finally:
        await form.close()


def displayed_name(name: str | None) -> str:
    """Return the last part of a file name that a client sent, without control characters, at most 100 characters."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    return re.sub(r"[^\w .,()+@#=-]", "_", last)[:100].strip() or "file"


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        request.state.bytes = received
        if received > max_bytes:
            raise _too_many_bytes(max_bytes)
        yield chunk


def _too_many_bytes(limit: int) -> RequestError:
    return RequestError(413, f"the request is larger than {limit:,} bytes", "send fewer or smaller files")


def _too_many_files(limit: int) -> RequestError:
    return RequestError(413, f"the request has more than {limit} files", "send fewer files at a time")


def _shown(text: str) -> str:
    return re.sub(r"[^\w./+-]", "_", text)[:60]
