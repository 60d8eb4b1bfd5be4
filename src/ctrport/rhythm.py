"""How long a watcher rests between its full passes.

Tens of thousands of ports make a full pass cost tenths of a second. It then takes a thousandth of a processor, as
long as that leaves one in ten times the time that was asked for. Events and repairs do not wait for it.
"""

from __future__ import annotations

DEAR = 0.1  # seconds of processor time
SHARE = 1000  # times what a dear pass took
LONGEST = 10  # times what was asked for


def rest(every: float, cost: float) -> float:
    """Give the seconds from one full pass to the next, of those that were asked for and what the last one cost."""
    return every if cost < DEAR else min(max(every, SHARE * cost), LONGEST * every)
