"""Running ctr: its words on failure, its exit code, and the signals that belong to it."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
import threading
from typing import TYPE_CHECKING, TextIO

from ctrport.errors import CtrportError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ctrport.connection import Connection
    from ctrport.model.workload import Key

log = logging.getLogger(__name__)
POLL = 0.005  # seconds between looks at a task that starts
# Docker's exit codes for what a container could not do, and runc's words for it.
RUN_FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
START_PATIENCE = 10.0  # seconds that a signal waits for a task that starts, before it ends the start
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class RunError(CtrportError):
    """ctr could not do what was asked; the exit code is Docker's."""

    def __init__(self, tried: str, said: str, hint: str | None = None) -> None:
        lines = [line.removeprefix("ctr: ") for line in said.strip().splitlines() if line.strip()]
        super().__init__(f"could not {tried}: {lines[-1] if lines else 'ctr gave no reason'}", hint=hint)
        self.exit_code = RUN_FAILED
        _, names_command, reason = said.partition("exec: ")
        if names_command and ("not found" in reason or "no such file or directory" in reason):
            self.exit_code = NOT_FOUND
        elif names_command and "permission denied" in reason:
            self.exit_code = NOT_EXECUTABLE


async def run(
    command: Sequence[str],
    tried: str,
    *,
    output: TextIO | None = None,
    hint: str | None = None,
    interruptible: bool = False,
) -> None:
    """Run a ctr command to its end. RunError with its last words when it fails.

    One that is not interruptible is out of the terminal's reach, and a cancellation waits for it: half of its
    work could not be found and taken back. If it fails then, that is told instead: it has done nothing.
    """
    log.debug("%s", shlex.join(command))
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output or asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=not interruptible,
        )
    except OSError as error:  # a command line that is too long: thousands of ports that form no range
        raise RunError(tried, error.strerror or "", "fewer options, or ports in ranges") from error
    ending = asyncio.ensure_future(process.communicate())
    try:
        _, said = await asyncio.shield(ending)
    except asyncio.CancelledError:
        if interruptible:
            process.kill()
        _, said = await ending
        if interruptible or process.returncode == 0:
            raise
    if process.returncode != 0:
        raise RunError(tried, said.decode("utf-8", "replace"), hint)


class Task:
    """`ctr tasks start`: over at once when detached, else as long as the container lives."""

    def __init__(self, command: Sequence[str], connection: Connection, key: Key, pid_file: Path) -> None:
        self._command = command
        self._connection = connection
        self._key = key
        self._pid_file = pid_file  # ctr writes it when the task is created
        self._process: asyncio.subprocess.Process | None = None
        self._relay: asyncio.Task[None] | None = None
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._passing: asyncio.Task[None] | None = None
        self._said = bytearray()  # ctr's error output until the task runs
        self._runs = False

    async def start(self, *, detach: bool, interactive: bool, tty: bool) -> None:
        """Start the task and wait until it runs. RunError when it cannot be started."""
        tried = f"start container {self._key.id}"
        self._pid_file.unlink(missing_ok=True)
        if detach:
            await run(self._command, tried)
            return
        log.debug("%s", shlex.join(self._command))
        # Input that ends before the task runs is never closed by ctr 1.6, and a `cat` would wait for ever: so
        # input goes through a pipe that is fed, or closed, only once the task runs. A terminal has no such end.
        # ctr passes signals on only some time after the task runs, and none with a terminal; until then they end
        # it and leave the container behind. So it gets none: without a terminal Ctrl-C does not reach it, and what
        # we get goes to containerd.
        loop = asyncio.get_running_loop()
        for number in FORWARDED:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=None if tty else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            process_group=None if tty else 0,
        )
        self._relay = asyncio.create_task(self._relay_errors(self._process))
        interrupted = None
        while not await self._is_live():
            if self._process.returncode is not None:
                await self._relay
                if not self._pid_file.exists():
                    raise RunError(tried, self._said.decode("utf-8", "replace"))
                break  # it ran and ended between two looks
            if not self._signals.empty():
                interrupted = interrupted or loop.time()
                if loop.time() > interrupted + START_PATIENCE:
                    raise RunError(tried, f"it does not start, and {self._signals.get_nowait().name} came")
            await asyncio.sleep(POLL)
        self._runs = True
        self._passing = asyncio.create_task(self._pass_signals())
        self._write_errors(bytes(self._said))
        if self._process.stdin is not None:
            if interactive:
                _feed(self._process.stdin)
            self._process.stdin.close()

    async def wait(self) -> int:
        """Wait for the container's end; gives its exit code as ctr does."""
        assert self._process is not None  # noqa: S101 - only a foreground task is waited for
        code = await self._process.wait()
        if self._passing is not None:
            self._passing.cancel()
        if self._relay is not None:
            await self._relay
        return code if code >= 0 else 128 - code

    async def abandon(self) -> None:
        """Give up on a foreground task whose container is about to be removed."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _is_live(self) -> bool:
        if not self._pid_file.exists():
            return False
        task = await self._connection.client.task(self._key)
        return task is not None and task.status.live

    async def _relay_errors(self, process: asyncio.subprocess.Process) -> None:
        """Pass ctr's error output on once the task runs: before that it is told as our own error."""
        stream = process.stderr
        while stream is not None and (chunk := await stream.read(65536)):
            if self._runs:
                self._write_errors(chunk)
            else:
                self._said += chunk

    @staticmethod
    def _write_errors(chunk: bytes) -> None:
        sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()

    async def _pass_signals(self) -> None:
        """Hand the signals that come to the container, in their order."""
        while True:
            number = await self._signals.get()
            try:
                await self._connection.client.kill(self._key, number)
            except NotFoundError:  # it has ended already
                return
            except CtrportError as error:
                log.warning("%s", error.message)


def _feed(pipe: asyncio.StreamWriter) -> None:
    """Copy standard input to ctr's, in a thread that ends with this process: a read cannot be taken back."""
    target = os.dup(pipe.get_extra_info("pipe").fileno())
    os.set_blocking(target, True)

    def copy() -> None:
        try:
            while chunk := os.read(sys.stdin.fileno(), 65536):
                while chunk:
                    chunk = chunk[os.write(target, chunk) :]
        except OSError:  # the container has ended
            return
        finally:
            os.close(target)

    threading.Thread(target=copy, name="ctrport-stdin", daemon=True).start()
