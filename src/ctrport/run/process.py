"""Running ctr, and what its words and containerd's mean when a container cannot be made or started."""

from __future__ import annotations

import asyncio
import logging
import shlex
from typing import TYPE_CHECKING, TextIO

from ctrport.errors import CtrportError

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)
# Docker's exit codes for what a container could not do, and runc's words for it.
RUN_FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


class RunError(CtrportError):
    """A container could not be made or started; the exit code is Docker's."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = RUN_FAILED
        _, names_command, reason = message.partition("exec: ")
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
        raise RunError(f"could not {tried}: {error.strerror}", hint="fewer options, or ports in ranges") from error
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
        lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
        reason = lines[-1].removeprefix("ctr: ") if lines else "ctr gave no reason"
        raise RunError(f"could not {tried}: {reason}", hint=hint)
