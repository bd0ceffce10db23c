"""Settings of the C library's memory allocator for training on a processor."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h
TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Keep freed memory in the process instead of returning it to the kernel, which clears it before the next use.

    A training step frees and allocates all its activations. By default, glibc maps each large tensor anew, and the
    kernel clears its pages; see mallopt(3). Other C libraries are left unchanged.

    Returns:
        Whether the settings were made.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD)))
