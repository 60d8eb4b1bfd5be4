"""Users and groups of an image by name: `-u redis` means the redis of the image's own /etc/passwd."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ctrport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SIZE_LIMIT = 1 << 20  # bytes that are read of an image's file
UID_LIMIT = 1 << 31  # runc takes signed 32-bit numbers


def resolve(user: str, layers: Sequence[Path]) -> dict[str, int]:
    """Give the OCI user of `USER[:GROUP]`, names or numbers; `layers` are directories, the topmost first.

    As in Docker, a user without a group gets that of /etc/passwd, and 0 when it is not listed there. InputError
    names what is not in the image.
    """
    name, _, group = user.partition(":")
    passwd = _entries(layers, "passwd")
    line = next((f for f in passwd if len(f) > 3 and name in (f[0], f[2])), None)  # noqa: PLR2004 - a gid
    uid = _number(line[2] if line else name)
    if uid is None:
        raise InputError(
            f"--user {user!a}: the image's /etc/passwd has no user {name!a}", hint="or give its number"
        )
    gid = _number(line[3]) if line else 0
    if group:
        found = next((f[2] for f in _entries(layers, "group") if len(f) > 2 and f[0] == group), group)  # noqa: PLR2004
        gid = _number(found)
        if gid is None:
            raise InputError(f"--user {user!a}: the image's /etc/group has no group {group!a}")
    return {"uid": uid, "gid": gid or 0}


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and int(text) < UID_LIMIT else None


def _entries(layers: Sequence[Path], name: str) -> list[list[str]]:
    """Read a colon-separated file of the image's /etc from the topmost layer that has it."""
    for layer in layers:
        text = _read(layer, name)
        if text is not None:
            return [line.split(":") for line in text.splitlines()]
    return []


def _read(layer: Path, name: str) -> str | None:
    """Read without following a link: an image's /etc may point anywhere on this host."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        directory = os.open(layer / "etc", flags | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError:
        return None
    finally:
        os.close(directory)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        return file.read(SIZE_LIMIT).decode("utf-8", "replace")
