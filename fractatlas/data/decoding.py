"""Compressed DICOM pixels, decoded in a process of their own: at a broken file GDCM may end the one that it is in."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pydicom


class DecoderDiedError(Exception):
    """The decoder's process ended without an answer."""


_threads = threading.local()


def decode_apart(content: bytes) -> np.ndarray:
    """Decode a DICOM file's pixels.

    Args:
        content: the whole file.

    Returns:
        What pydicom's ``pixel_array`` gives there.

    Raises:
        DecoderDiedError: so it did; the next call starts another.
        RuntimeError: no decoder could.
        Exception: what else pydicom raised.
    """
    if not hasattr(_threads, "decoder"):
        _threads.decoder = _Decoder()  # one per thread, so that none loses its image with another's
    try:
        answer = _threads.decoder.ask(content)
    except (EOFError, OSError, pickle.UnpicklingError):
        del _threads.decoder
        raise DecoderDiedError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Decoder:
    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's, and this process ends when its input does
        )  # fmt: skip

    def ask(self, content: bytes) -> np.ndarray | Exception:
        pickle.dump(content, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def __del__(self):
        for pipe in (self.process.stdout, self.process.stdin):
            with contextlib.suppress(OSError):  # of one that died, with the file still in the pipe
                pipe.close()
        self.process.kill()
        self.process.wait()


def _answer() -> None:
    """Decode file after file, from standard input to standard output."""
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            content = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = pydicom.dcmread(io.BytesIO(content), force=True).pixel_array
        except MemoryError:
            answer = MemoryError()
        except Exception as error:
            answer = RuntimeError(str(error)) if isinstance(error, RuntimeError) else ValueError(str(error))
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _answer()
