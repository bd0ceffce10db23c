"""Decode compressed DICOM pixels in a subprocess, because a damaged file can crash the process of the decoder GDCM."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pydicom


class DecoderCrashedError(Exception):
    """Report that the decoder's process ended without a result."""


_threads = threading.local()


def decode_in_subprocess(content: bytes) -> np.ndarray:
    """Decode the pixels of a DICOM file in a subprocess.

    Args:
        content: content of the file.

    Returns:
        ``pixel_array`` of pydicom.

    Raises:
        DecoderCrashedError: the subprocess ended; the next call starts a new one.
        RuntimeError: no decoder can decode the pixels.
        ValueError: pydicom raised another exception.
    """
    if not hasattr(_threads, "decoder"):
        _threads.decoder = _Decoder()  # one per thread: a crash affects one image only
    try:
        result = _threads.decoder.decode(content)
    except (EOFError, OSError, pickle.UnpicklingError):
        del _threads.decoder
        raise DecoderCrashedError from None
    if isinstance(result, Exception):
        raise result
    return result


class _Decoder:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # no Ctrl-C for the subprocess: it ends when its standard input is closed
        )  # fmt: skip
        assert self.process.stdin
        assert self.process.stdout
        self.files, self.results = self.process.stdin, self.process.stdout

    def decode(self, content: bytes) -> np.ndarray | Exception:
        pickle.dump(content, self.files)
        self.files.flush()
        return pickle.load(self.results)

    def __del__(self) -> None:
        for pipe in (self.results, self.files):
            with contextlib.suppress(OSError):  # after a crash, the pipe still contains the file
                pipe.close()
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Read pickled files from standard input and write pickled pixels to standard output."""
    results = os.fdopen(os.dup(1), "wb")  # a copy, so that prints of a library do not mix with the results
    os.dup2(2, 1)
    while True:
        try:
            content = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        result: np.ndarray | Exception
        try:
            result = pydicom.dcmread(io.BytesIO(content), force=True).pixel_array
        except MemoryError:
            result = MemoryError()
        except Exception as error:
            result = RuntimeError(str(error)) if isinstance(error, RuntimeError) else ValueError(str(error))
        pickle.dump(result, results)
        results.flush()


if __name__ == "__main__":
    main()
