"""Ctrl-C and its like: they end a command, which then takes back what it has begun."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

log = logging.getLogger(__name__)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Cancels a task at the first signal, `number`; while the task takes things back others change nothing."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.number: int | None = None
        self._task = task

    def listen(self) -> None:
        """Take the signals, but for those that this process was started to ignore (`nohup`)."""
        loop = asyncio.get_running_loop()
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._come, number)

    def _come(self, number: int) -> None:
        if self.number is not None:
            log.warning("taking back what was begun; please wait")
            return
        self.number = number
        self._task.cancel()
