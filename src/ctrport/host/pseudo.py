"""Files that the kernel makes up as they are read, in /proc and /proc/sys. Knows no name and no format of any."""

from __future__ import annotations

import os


def read(path: str, directory: int | None = None) -> bytes:
    """Give all that a file says, relative to an open directory if there is one. OSError as it comes.

    Some are read all the time, and `open` would ask seven things about a file first.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)
