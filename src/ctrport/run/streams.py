"""A container's standard streams: named pipes between its shim and us, copied to the last byte.

ctr closes its ends as soon as the task has ended, and what it has not read by then is lost: of 350 kB written in
the container's last moment up to 150 kB, every tenth time on a busy machine (ctr 1.6.20, 1.7.24 and 2.1.9).
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import select
import sys
import termios
import threading
import tty
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TextIO

from ctrport.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

log = logging.getLogger(__name__)
CHUNK = 65536  # bytes: what a pipe holds


class End(enum.Enum):
    """How a stream was copied: to its end, or until nobody took it any more."""

    WHOLE = enum.auto()
    BROKEN = enum.auto()


class Streams:
    """The pipes of one task, made by `__enter__` and open until `__exit__`; `remove` takes their names away.

    Who ends a task that we have left needs them, as its shim waits until somebody has read what is in them.
    """

    def __init__(self, where: Path, *, interactive: bool = False, terminal: bool = False) -> None:
        self._input = where / "stdin" if interactive else None
        self._outputs: dict[Path, TextIO] = {where / "stdout": sys.stdout}
        if not terminal:
            self._outputs[where / "stderr"] = sys.stderr
        self._terminal = terminal
        self._sources: dict[int, TextIO] = {}
        self._copies: list[asyncio.Future[End]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for path in filter(None, (self._input, *self._outputs)):
                path.unlink(missing_ok=True)  # of a run that was killed
                os.mkfifo(path, 0o600)
            for path, target in self._outputs.items():
                # The shim waits for a reader before it opens its end; a reader would wait for the shim.
                source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                stack.callback(os.close, source)
                os.set_blocking(source, True)
                self._sources[source] = target
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def remove(self) -> None:
        """Take the pipes' names away: the task has ended, and all of it has been read."""
        for path in filter(None, (self._input, *self._outputs)):
            path.unlink(missing_ok=True)

    @property
    def arguments(self) -> dict[str, str | bool]:
        """What the task is to be started with, see `Client.start_task`."""
        paths = {path.name: str(path) for path in filter(None, (self._input, *self._outputs))}
        return {**paths, "terminal": self._terminal}

    def attach(self) -> Awaitable[object]:
        """Begin to copy, which needs a task that has been created; gives what is done when the input has ended.

        HostError when our terminal is gone.
        """
        if self._terminal and self._input is not None and sys.stdin.isatty():
            try:
                before = termios.tcgetattr(sys.stdin)
                self._stack.callback(_put_back, before)
                tty.setraw(sys.stdin, termios.TCSANOW)  # what has been typed ahead stays
            except termios.error as error:
                raise HostError(f"the terminal cannot be used: {error.args[-1]}") from error
        # The threads have descriptors of their own, which may be in use for longer than ours.
        self._copies = [
            _in_thread(partial(_copy, os.dup(source), os.dup(target.fileno())))
            for source, target in self._sources.items()
        ]
        if self._input is None:
            return asyncio.get_running_loop().create_future()
        return _in_thread(partial(_feed, os.dup(sys.stdin.fileno()), self._input))

    async def broken(self) -> None:
        """Return as soon as somebody does not take our output any more; else never."""
        copies = set(self._copies)
        while copies:
            done, copies = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            if any(copy.result() is End.BROKEN for copy in done):
                return
        await asyncio.get_running_loop().create_future()

    async def drained(self) -> None:
        """Return when everything that the container has written is out."""
        await asyncio.gather(*self._copies)


def _put_back(modes: list[Any]) -> None:
    with suppress(termios.error):  # the terminal is gone
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)


def _in_thread(work: Callable[[Callable[[End], None]], None]) -> asyncio.Future[End]:
    """Do it in a thread that ends with this process: who waits for a pipe cannot be called back.

    Gives what `work` tells first, which it may do before it ends.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[End] = loop.create_future()

    def settle(end: End) -> None:
        if not result.done():
            result.set_result(end)

    def tell(end: End) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, end)

    threading.Thread(target=work, args=(tell,), name="ctrport-streams", daemon=True).start()
    return result


def _copy(source: int, target: int, tell: Callable[[End], None]) -> None:
    """Copy until the end and close both; tells how it went as soon as that is clear.

    What nobody takes is read all the same: a shim whose pipe is full is slow to let go of its task.
    """
    is_taken = True
    while chunk := os.read(source, CHUNK):
        try:
            if is_taken:
                _write(target, chunk)
        except BrokenPipeError:
            is_taken = False
            tell(End.BROKEN)
        except OSError as error:
            is_taken = False
            log.warning("what the container writes is lost from here on: %s", error.strerror)
    os.close(source)
    os.close(target)
    tell(End.WHOLE)


def _feed(source: int, pipe: Path, tell: Callable[[End], None]) -> None:
    """Copy standard input into the container's pipe, until either ends."""
    with suppress(OSError):  # the container has ended, or our terminal is gone
        target = os.open(pipe, os.O_WRONLY)
        try:
            while chunk := _read(source):
                _write(target, chunk)
        finally:
            os.close(target)
    os.close(source)
    tell(End.WHOLE)


# Whoever gave us a stream that does not wait shares it with us: that is not ours to change, so we wait ourselves.


def _read(source: int) -> bytes:
    """Wait for something to read; nothing at the end. OSError."""
    while True:
        try:
            return os.read(source, CHUNK)
        except BlockingIOError:
            select.select([source], [], [])


def _write(target: int, chunk: bytes) -> None:
    """Write all of it, however long that takes. OSError."""
    while chunk:
        try:
            chunk = chunk[os.write(target, chunk) :]
        except BlockingIOError:
            select.select([], [target], [])
