"""Named network namespaces as iproute2 keeps them: files under /run/netns that a namespace is mounted on.

By thread, not by fork: unshare(2) and setns(2) move the calling thread alone, and a fork of a process that runs
gRPC's threads may hang. Python has both calls only since 3.12.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000  # include/uapi/linux/mount.h
MNT_DETACH = 2


def create(name: str) -> Path:
    """Make a namespace unless it is there. HostError without the right to."""
    path = DIRECTORY / name
    if is_mounted(path):
        return path
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    _share_directory()
    path.unlink(missing_ok=True)  # a plain file is what a reboot leaves
    path.touch(mode=0o000, exist_ok=False)
    with ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)
        _in_thread(lambda: _unshare_onto(path))
        undo.pop_all()
    return path


def remove(name: str) -> None:
    """Unmount and remove a namespace's file; twice is the same as once. Processes inside keep it alive."""
    path = DIRECTORY / name
    if is_mounted(path):
        _call("umount2", os.fsencode(path), MNT_DETACH)
    path.unlink(missing_ok=True)


def is_mounted(path: Path) -> bool:
    """Whether a file is a namespace and not what is left of one: namespaces share one filesystem, nsfs."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except FileNotFoundError:
        return False


def inside(path: Path, work: Callable[[], None]) -> None:
    """Run a function in a thread of its own that has moved to a namespace. Raises what the function raises."""

    def body() -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", descriptor, CLONE_NEWNET)
        finally:
            os.close(descriptor)
        work()

    _in_thread(body)


def _unshare_onto(path: Path) -> None:
    _call("unshare", CLONE_NEWNET)
    _call("mount", b"/proc/thread-self/ns/net", os.fsencode(path), b"none", MS_BIND, None)


def _share_directory() -> None:
    """Let other mount namespaces see what is mounted here later, as `ip netns add` does."""
    where = os.fsencode(DIRECTORY)
    try:
        _call("mount", b"", where, b"none", MS_SHARED | MS_REC, None)
    except HostError:  # not a mount point yet
        _call("mount", where, where, b"none", MS_BIND | MS_REC, None)
        _call("mount", b"", where, b"none", MS_SHARED | MS_REC, None)


def _in_thread(work: Callable[[], None]) -> None:
    """Run a function in a thread that ends with it: nobody else may be where it has moved to."""
    with ThreadPoolExecutor(1, thread_name_prefix="ctrport-netns") as pool:
        pool.submit(work).result()


def _call(name: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        shown = ", ".join(os.fsdecode(a) if isinstance(a, bytes) else str(a) for a in arguments)
        raise HostError(f"{name}({shown}) failed: {os.strerror(code)}", hint="run as root (CAP_SYS_ADMIN)")
