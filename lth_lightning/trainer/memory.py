"""Keeps freed CPU memory in the process from step to step, instead of returning it to the system."""

import ctypes
import platform

# mallopt(3); values are C ints.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Make the process keep the memory that it frees; its peak size does not grow.

    By default glibc returns every tensor above 32 MB to the system when freed, and the system zeroes new pages for the
    next one: 15,000 page faults per step of Conv-2. Without them that step takes three quarters of the time, and an
    evaluation half. Without glibc this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
