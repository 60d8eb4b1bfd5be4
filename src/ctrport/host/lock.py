"""The lock in the state directory: one writer of rules and giver of addresses.

flock is released by the kernel when its holder dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from ctrport.errors import HostError

WRITER = "lock"  # who holds it writes nftables rules
POLL = 0.01  # seconds between attempts of who waits for it


def prepare(state: Path) -> None:
    """Make the state directory for root alone. HostError when that is not possible, or it is not root's alone."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot make the state directory {state}: {error.strerror}", hint="run as root") from error
    check(state)


def check(state: Path) -> None:
    """Refuse a state directory in which others could put a lock, a record or a watcher's socket of their own."""
    try:
        there = state.stat()
        owners = {there.st_uid, state.lstat().st_uid}  # of a link, too
    except OSError:  # not there: nobody's
        return
    user = os.geteuid()
    if user != 0:  # nothing of what follows will work, and that is said there
        return
    if owners != {user}:
        said = f"belongs to another user ({', '.join(str(uid) for uid in sorted(owners - {user}))})"
    elif stat.S_IMODE(there.st_mode) & 0o022:
        said = f"can be written to by others (mode {stat.S_IMODE(there.st_mode):04o})"
    else:
        return
    raise HostError(
        f"the state directory {state} {said}: whoever writes there decides what ctrport does",
        hint=f"chown root: {state}; chmod go-w {state}, or give another --state",
    )


def try_acquire(state: Path, name: str) -> int | None:
    """Give the descriptor of a held lock, None when somebody else holds it."""
    prepare(state)
    try:
        descriptor = os.open(state / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(f"cannot open the lock {state / name}: {error.strerror}", hint="run as root") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_lost(state: Path, name: str, descriptor: int) -> bool:
    """Say whether a lock that is held has been removed: others would make, and get, another one of its name."""
    try:
        there, ours = (state / name).stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return True
    except OSError:  # nobody can tell, and nobody else could take it
        return False
    return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


def release(descriptor: int) -> None:
    """Let go of a lock."""
    os.close(descriptor)


def holder(state: Path, name: str) -> int | None:
    """Give the process that holds a lock, None where nobody is seen to: by /proc/locks, without touching it."""
    try:
        found = (state / name).stat()
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:  # "1: FLOCK  ADVISORY  WRITE 811 08:01:1234 0 EOF"; who waits has an arrow after the number
        _, kind, _, _, pid, where, *_ = line.split()
        if (kind, where) == ("FLOCK", place):
            return int(pid)
    return None
