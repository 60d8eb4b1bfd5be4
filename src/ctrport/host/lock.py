"""The lock in the state directory: one writer of rules and giver of addresses.

flock is released by the kernel when its holder dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from ctrport.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

WRITER = "lock"  # who holds it writes nftables rules
POLL = 0.01  # seconds between attempts of who waits for it


def prepare(state: Path) -> None:
    """Make the state directory for root alone. HostError when that is not possible."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot make the state directory {state}: {error.strerror}", hint="run as root") from error


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


def release(descriptor: int) -> None:
    """Let go of a lock."""
    os.close(descriptor)
