"""A terminal with the program on it, as a user has it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
from typing import TYPE_CHECKING, Any

from lab import until

if TYPE_CHECKING:
    from program import Cli


class Terminal:
    """The program on a terminal of its own, as a user types it."""

    def __init__(self, ctrport: Cli, *arguments: str) -> None:
        self._main, terminal = pty.openpty()
        self.said = ""

        def control() -> None:  # become the session's foreground process group
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = ctrport.popen(
            *arguments, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=control
        )
        os.close(terminal)

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def read(self) -> str:
        """Take what has been said since the last call."""
        while select.select([self._main], [], [], 0)[0]:
            try:
                chunk = os.read(self._main, 65536)
            except OSError:  # EIO: nobody has the other side any more
                break
            if not chunk:
                break
            self.said += chunk.decode()
        return self.said

    def expect(self, text: str, within: float = 15.0) -> None:
        until(lambda: text in self.read(), within=within, what=f"{text!r} (said: {self.said!r})")

    def wait(self) -> int:
        until(lambda: (self.read(), self.process.poll())[1] is not None, within=15, what="the end")
        self.read()
        return int(self.process.returncode)

    def close(self) -> None:
        os.close(self._main)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def modes(self) -> list[Any]:
        """How the terminal treats what is typed and written."""
        return termios.tcgetattr(self._main)
