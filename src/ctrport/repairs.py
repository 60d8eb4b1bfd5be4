"""What had to be put right, and how often: the memory by which two programs that fight do not spin.

Whoever undoes our work may do so for ever: a script in a loop, another manager that wants the same rule otherwise.
Repairs of one thing that come again and again are made after a pause that doubles, until nobody undoes them any
more. Knows no rules and makes no repairs. Times are those of a clock that nobody sets.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
OFTEN = 5  # repairs of one thing within `WINDOW` that are no fight yet
WINDOW = 10.0  # seconds
PAUSES = (0.5, 30.0)  # seconds before a repair in a fight: the first, and the longest
PEACE = 60.0  # seconds without a repair after which a fight is over


@dataclass(slots=True)
class _Thing:
    """One thing that is repaired: our table, the settings, other people's firewalls."""

    lately: deque[float] = field(default_factory=lambda: deque(maxlen=OFTEN + 1))
    pause: float = 0.0  # before the next repair; 0 in peace
    against: str = ""


class Repairs:
    """The repairs of one writer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._things: dict[str, _Thing] = {}
        self._count = 0
        self._last: dict[str, Any] | None = None

    def note(self, thing: str, what: str, process: str, seconds: float) -> None:
        """Take in a repair and tell of it: what was wrong, who did it, how long putting it right took."""
        now = self._clock()
        self._count += 1
        self._last = {"at": time.time(), "what": what, "process": process, "seconds": round(seconds, 3)}
        log.warning("%s: %s; put right in %.0f ms", process, what, 1000 * seconds)
        state = self._things.setdefault(thing, _Thing())
        self._make_peace(state, now)
        state.lately.append(now)
        state.against = process
        if state.pause:
            state.pause = min(2 * state.pause, PAUSES[1])
        elif len(state.lately) > OFTEN and now - state.lately[0] < WINDOW:
            state.pause = PAUSES[0]
            log.warning(
                "%s undoes again and again what published ports need (%s): from now on it is put right after a "
                "pause, of up to %.0f s. End that program, or have it leave alone what is not its own",
                *(process, what, PAUSES[1]),
            )

    def pause(self, thing: str) -> float:
        """Give the seconds to wait before a thing is repaired."""
        state = self._things.get(thing)
        if state is None or not state.lately:
            return 0.0
        now = self._clock()
        self._make_peace(state, now)
        return max(0.0, state.pause - (now - state.lately[-1])) if state.pause else 0.0

    def to_json(self) -> dict[str, Any]:
        """Give the number of repairs, the last one (its time is of the day), and who fights over what."""
        now = self._clock()
        for state in self._things.values():
            self._make_peace(state, now)
        fighting = {thing: state.against for thing, state in self._things.items() if state.pause}
        return {"repairs": self._count, "last_repair": self._last, "fighting": fighting}

    @staticmethod
    def _make_peace(state: _Thing, now: float) -> None:
        if state.lately and now - state.lately[-1] > PEACE:
            state.lately.clear()
            state.pause = 0.0
