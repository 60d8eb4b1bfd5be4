"""The watcher's place in the state directory: its lock and its socket, made again where somebody has removed them.

Without the lock a command would take itself for the only writer; without the socket it could not ask the watcher.
Who cleans up in /run takes both.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ctrport.errors import HostError
from ctrport.host import lock

if TYPE_CHECKING:
    from pathlib import Path

    from ctrport.control import Server

log = logging.getLogger(__name__)


class Place:
    """The place of a watcher that has the lock."""

    def __init__(self, state: Path, held: int) -> None:
        self._state = state
        self._held = held
        self._taken = False  # whether somebody else has the lock by now
        self._trouble = ""

    async def keep(self, server: Server) -> None:
        """Make again what is gone; what cannot be made is told once, and tried at the next call."""
        try:
            if lock.is_lost(self._state, lock.WRITER, self._held) and not self._retake():
                return
            if not server.is_reachable:
                await server.start()
                log.warning("somebody has removed the control socket in %s: it is there again", self._state)
            self._trouble = ""
        except (HostError, OSError) as error:
            if str(error) != self._trouble:
                log.error("the state directory %s cannot be made again: %s", self._state, error)  # noqa: TRY400
            self._trouble = str(error)

    def leave(self) -> None:
        """Let go of the lock."""
        lock.release(self._held)

    def _retake(self) -> bool:
        """Take the lock that is there now; a command may have it for a moment."""
        held = lock.try_acquire(self._state, lock.WRITER)
        if held is None:
            if not self._taken:
                log.error("somebody has removed the lock in %s, and another process has it now", self._state)
            self._taken = True
            return False
        lock.release(self._held)
        self._held, self._taken = held, False
        log.warning("somebody has removed the lock in %s: it is there again", self._state)
        return True
