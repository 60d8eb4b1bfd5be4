"""A container's task: started, left alone or attended to its end with the signals that belong to it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ctrport.errors import ContainerdError, CtrportError, NotFoundError
from ctrport.run.process import RunError
from ctrport.whole import to_its_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from pathlib import Path

    from ctrport.connection import Connection
    from ctrport.control import Writer
    from ctrport.model.key import Key
    from ctrport.run.interruption import Interruption
    from ctrport.run.streams import Streams

log = logging.getLogger(__name__)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
AWAY_PATIENCE = 90.0  # seconds that containerd may be away while its shim goes on
AWAY_POLL = 0.2  # seconds between attempts to reach it
UNKNOWN_STATUS = 255  # containerd's own UnknownExitStatus
T = TypeVar("T")


async def start(link: Writer, key: Key, streams: Mapping[str, str | bool]) -> None:
    """Start a container's task. RunError when it cannot be."""
    try:
        await to_its_end(link.call("start", container=list(key), streams=dict(streams)))
    except (ContainerdError, NotFoundError) as error:
        raise RunError(error.message, hint=error.hint) from error


async def start_detached(link: Writer, key: Key, where: Path, *, terminal: bool) -> None:
    """Start a task that outlives us, its output in `log_of`; what is written to a terminal is not kept."""
    if terminal:  # a shim writes a terminal's output to a path, and would wait for somebody to read a pipe
        await start(link, key, {"stdout": os.devnull, "terminal": True})
        return
    uri = f"file://{log_of(where)}"
    await start(link, key, {"stdout": uri, "stderr": uri})


def log_of(where: Path) -> Path:
    """Give the file of a detached container's output."""
    return where / "output.log"


class Attended:
    """A task in the foreground: over when it has ended, its output is out and its exit code known."""

    def __init__(self, connection: Connection, key: Key, streams: Streams, interruption: Interruption) -> None:
        self._connection = connection
        self._key = key
        self._streams = streams
        self._interruption = interruption
        self._stack = ExitStack()
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._work: set[asyncio.Task[Any]] = set()
        self._ending: asyncio.Task[int] | None = None

    async def start(self, link: Writer) -> None:
        """Start the task and attend to it. Signals that come meanwhile reach it when it runs."""
        loop = asyncio.get_running_loop()
        for number in FORWARDED:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        self._stack.enter_context(self._streams)
        await start(link, self._key, self._streams.arguments)
        self._ending = self._begin(self._exit_status())  # `stop` deletes a task a moment after its end
        passing = self._begin(self._pass_signals())
        self._ending.add_done_callback(lambda _: passing.cancel())  # another task may have its name by then
        self._begin(self._pass_input_end(self._streams.attach()))
        if self._streams.arguments["terminal"] and sys.stdout.isatty():
            loop.add_signal_handler(signal.SIGWINCH, lambda: self._begin(self._pass_size()))
            self._begin(self._pass_size())

    async def wait(self) -> int:
        """Wait for the container's end; gives its exit code, 141 when nobody takes our output any more.

        ContainerdError when containerd has been away for too long.
        """
        assert self._ending is not None  # noqa: S101 - it has been started
        broken = self._begin(self._streams.broken())
        try:
            await asyncio.wait([self._ending, broken], return_when=asyncio.FIRST_COMPLETED)
            if not self._ending.done():
                return 128 + signal.SIGPIPE
            code = self._ending.result()
            self._interruption.listen()  # there is nothing left that signals could reach
            drained = self._begin(self._streams.drained())
            await asyncio.wait([drained, broken], return_when=asyncio.FIRST_COMPLETED)
            self._streams.remove()
            try:
                await self._connection.client.delete_task(self._key)
            except ContainerdError as error:
                log.warning("%s", error.message)
            return code
        finally:
            self.leave()

    def leave(self) -> None:
        """Attend no longer to the task, and leave it alone."""
        for work in self._work:
            work.cancel()
        loop = asyncio.get_running_loop()
        for number in (*FORWARDED, signal.SIGWINCH):
            loop.remove_signal_handler(number)
        self._interruption.listen()
        self._stack.close()

    def _begin(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _exit_status(self) -> int:
        try:
            return await self._lasting(lambda: self._connection.client.wait(self._key))
        except NotFoundError:  # somebody has deleted it
            return UNKNOWN_STATUS

    async def _pass_signals(self) -> None:
        """Hand the signals that come to the container, in their order."""
        while True:
            number = await self._signals.get()
            try:
                await self._lasting(partial(self._connection.client.kill, self._key, number))
            except NotFoundError:  # it has ended already
                return
            except CtrportError as error:
                log.warning("%s", error.message)

    async def _pass_input_end(self, ended: Awaitable[object]) -> None:
        await ended
        if not self._streams.arguments["terminal"]:  # there the program sees an end by the character for it
            with suppress(CtrportError):
                await self._lasting(lambda: self._connection.client.close_stdin(self._key))

    async def _lasting(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask containerd, and again while it is away, as its shims go on. ContainerdError after AWAY_PATIENCE."""
        loop = asyncio.get_running_loop()
        reached = loop.time()
        while True:
            began = loop.time()
            try:
                return await ask()
            except ContainerdError:
                if loop.time() - began > AWAY_POLL:  # it was there
                    reached = loop.time()
                if loop.time() - reached > AWAY_PATIENCE:
                    raise
            await asyncio.sleep(AWAY_POLL)

    async def _pass_size(self) -> None:
        with suppress(CtrportError, OSError):
            await self._connection.client.resize(self._key, os.get_terminal_size(sys.stdout.fileno()))
