"""How long a watcher rests between its full passes.

Tens of thousands of ports make a full pass cost tenths of a second. It then takes a thousandth of a processor, as
long as that leaves one in ten times the time that was asked for. Events and repairs do not wait for it.
"""

from __future__ import annotations

import time

DEAR = 0.1  # seconds of processor time
SHARE = 1000  # times what a dear pass took
LONGEST = 10  # times what was asked for


def rest(every: float, cost: float) -> float:
    """Give the seconds from one full pass to the next, of those that were asked for and what the last one cost."""
    return every if cost < DEAR else min(max(every, SHARE * cost), LONGEST * every)


class Rhythm:
    """The full passes of one writer: what the last one cost, and how long ago it ended."""

    def __init__(self) -> None:
        self._begun = self._cost = 0.0  # processor time, seconds
        self._ended = time.monotonic()  # the last pass, or our own beginning; no change of the clock counts in it

    def begin(self) -> None:
        """Take note that a full pass begins."""
        self._begun = time.process_time()

    def end(self) -> None:
        """Take note that it is through."""
        self._cost, self._ended = time.process_time() - self._begun, time.monotonic()

    def since(self) -> float:
        """Give the seconds since the last one."""
        return time.monotonic() - self._ended

    def rest(self, every: float) -> float:
        """Give the seconds from the last one to the next, of those that were asked for."""
        return rest(every, self._cost)
