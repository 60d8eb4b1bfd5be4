"""A file under /run/sysctl.d with the settings that we need, so that `sysctl --system` does not undo them.

systemd-sysctl reads it too, also for each interface that comes later. The file is replaced as a whole, no link is
followed, and a directory that others can write to is refused. In /run, as the first pass after a reboot writes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.config import Config

NAME = "99-ctrport.conf"  # sorted behind others: of two values the last one counts
DRAFT = ".99-ctrport.draft"  # not *.conf, which would be read
HEAD = "# What published ports need. Written by ctrport at each pass, removed by `ctrport flush`.\n"
LIMIT = 1 << 20  # bytes of an old file that are compared
# A star would mean every interface; names with other strange characters have no way to be written.
WRITABLE = re.compile(r"[A-Za-z0-9_.@+/-]+")


def place(config: Config) -> Path | None:
    """Give the directory to write to, None where there is none.

    Only the settings of the machine's own network namespace are read from /run/sysctl.d. Somebody who runs a host
    in another one can name a directory in config.toml.
    """
    if config.sysctl_directory is None or config.sysctl_directory_given or in_first_namespace():
        return config.sysctl_directory
    return None


def in_first_namespace() -> bool:
    """Whether this thread is in the network namespace of process 1.

    /proc/1/ns/net may be looked at only by a process that has all capabilities of process 1. What /proc/PID/net
    leads to needs none, and its files have inode numbers of their own in each network namespace.
    """
    try:
        first, own = (Path(f"/proc/{pid}/net/dev").stat() for pid in ("1", "thread-self"))
    except OSError:  # hidden from us (hidepid)
        return False
    return (first.st_dev, first.st_ino) == (own.st_dev, own.st_ino)


def write(directory: Path, lines: Iterable[tuple[str, str, str]]) -> None:
    """Have the file say these settings (name, value and why); without any it is removed. HostError if it cannot."""
    text = "".join(_text(*line) for line in lines if WRITABLE.fullmatch(line[0]))
    if not text:
        remove(directory)
        return
    wanted = (HEAD + text).encode("ascii")
    with _opened(directory, make=True) as place:
        if place is None or _content(place) == wanted:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(DRAFT, dir_fd=place)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(DRAFT, flags, 0o644, dir_fd=place), "wb") as file:  # noqa: PTH123 - a descriptor
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: others may read what holds for them too
            file.write(wanted)
        os.rename(DRAFT, NAME, src_dir_fd=place, dst_dir_fd=place)


def remove(directory: Path) -> bool:
    """Remove the file; says whether there was one."""
    with _opened(directory, make=False) as place:
        if place is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(NAME, dir_fd=place)
                return True
    return False


def _text(name: str, value: str, why: str) -> str:
    # With a minus a setting that is not there (its interface is gone) is no failure of sysctl.d(5). With slashes a
    # dot in an interface's name stays a dot.
    return f"# {why}\n-{name} = {value}\n"


@contextlib.contextmanager
def _opened(directory: Path, *, make: bool) -> Iterator[int | None]:
    """Give a descriptor of the directory, None when there is none; what goes wrong in the block is a HostError."""
    try:
        if make:
            directory.mkdir(mode=0o755, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            yield None
            return
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
                raise HostError(
                    f"{directory} can be written to by others, and decides about settings of the kernel",
                    hint=f"chown root: {directory}; chmod go-w {directory}",
                )
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HostError(
            f"cannot write {directory / NAME}, which keeps settings from `sysctl --system`: {error.strerror}",
            hint=f'ls -ld {directory}, or sysctl_directory = "" in config.toml',
        ) from error


def _content(place: int) -> bytes | None:
    try:
        descriptor = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    except OSError:  # not there, or a link, which the rename replaces
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        return file.read(LIMIT)
