"""Decode compressed DICOM pixels in a subprocess, because a damaged file can crash the process of the decoder GDCM."""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import gdcm
import imagecodecs
import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels import convert_color_space, get_decoder
from pydicom.uid import JPEGExtended12Bit, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

# JPEG with spectral selection and with full progression (both retired). GDCM decodes them, but pydicom has no decoder.
PROGRESSIVE_JPEG = ("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
Request = tuple[bytes, str, dict[str, Any]]


class DecoderCrashedError(Exception):
    """Report that the decoder's process ended without a result."""


_threads = threading.local()


def decode_in_subprocess(pixels: bytes, syntax: str, options: dict[str, Any]) -> np.ndarray:
    """Decode the pixels of a DICOM file with one frame in a subprocess.

    Args:
        pixels: the value of the element PixelData.
        syntax: the transfer syntax, encapsulated.
        options: of ``as_array`` of pydicom's decoders.

    Returns:
        Samples, (rows, columns) or (rows, columns, 3); colours are RGB.

    Raises:
        DecoderCrashedError: the subprocess ended; the next call starts a new one.
        RuntimeError: no decoder can decode the pixels.
        ValueError: pydicom raised another exception.
    """
    if not hasattr(_threads, "decoder"):
        _threads.decoder = _Decoder()  # one per thread: a crash affects one image only
    try:
        result = _threads.decoder.decode((pixels, syntax, options))
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

    def decode(self, request: Request) -> np.ndarray | Exception:
        pickle.dump(request, self.files)
        self.files.flush()
        return pickle.load(self.results)

    def __del__(self) -> None:
        for pipe in (self.results, self.files):
            with contextlib.suppress(OSError):  # after a crash, the pipe still contains the file
                pipe.close()
        self.process.kill()
        self.process.wait()


def decode(pixels: bytes, syntax: str, options: dict[str, Any]) -> np.ndarray:
    """Decode pixels in this process; arguments and result are those of ``decode_in_subprocess``."""
    stored = options["bits_stored"]
    if syntax in PROGRESSIVE_JPEG or (syntax == JPEGExtended12Bit and stored > 8):
        return _decode_with_gdcm(get_frame(pixels, 0, number_of_frames=1), syntax, options)
    if syntax in JPEGLSTransferSyntaxes and stored in (6, 7) and options["samples_per_pixel"] == 1:
        # GDCM returns wrong values for these numbers of bits.
        samples = imagecodecs.jpegls_decode(get_frame(pixels, 0, number_of_frames=1))
        if samples.shape != (options["rows"], options["columns"]):
            raise RuntimeError(f"an image of {samples.shape}")
        return samples.view(f"{'iu'[not options['pixel_representation']]}{samples.dtype.itemsize}")
    if syntax in JPEGTransferSyntaxes:  # GDCM crashes for fewer bits
        options = options | {"bits_stored": max(stored, min(8, options["bits_allocated"]))}
    return get_decoder(syntax).as_array(pixels, **options)[0]


def _decode_with_gdcm(frame: bytes, syntax: str, options: dict[str, Any]) -> np.ndarray:
    """Decode JPEG of up to 12 bits, which pydicom does not hand to GDCM."""
    rows, columns, channels = options["rows"], options["columns"], options["samples_per_pixel"]
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    photometric = gdcm.PhotometricInterpretation.GetPIType(options["photometric_interpretation"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(photometric))
    if channels > 1:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    allocated, stored = options["bits_allocated"], options["bits_stored"]
    signed = options["pixel_representation"]
    image.SetPixelFormat(gdcm.PixelFormat(channels, allocated, stored, stored - 1, signed))
    buffer = image.GetBuffer()
    if buffer is None:
        raise RuntimeError("GDCM cannot decode the frame")
    content = buffer.encode("utf-8", "surrogateescape")  # GDCM returns bytes as str
    samples = np.frombuffer(content, f"{'iu'[not signed]}{allocated // 8}")
    if samples.size != rows * columns * channels:
        raise RuntimeError(f"{samples.size} samples, expected {rows * columns * channels}")
    if channels == 1:
        return samples.reshape(rows, columns)
    colours = samples.reshape(rows, columns, channels)
    if options["photometric_interpretation"].startswith("YBR_FULL"):
        return convert_color_space(colours, "YBR_FULL", "RGB")
    return colours


def main() -> None:
    """Read pickled requests from standard input and write pickled pixels to standard output."""
    results = os.fdopen(os.dup(1), "wb")  # a copy, so that prints of a library do not mix with the results
    os.dup2(2, 1)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        result: np.ndarray | Exception
        try:
            result = decode(*request)
        except MemoryError:
            result = MemoryError()
        except Exception as error:
            result = (ValueError if isinstance(error, ValueError) else RuntimeError)(str(error))
        pickle.dump(result, results)
        results.flush()


if __name__ == "__main__":
    main()
