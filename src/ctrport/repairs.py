"""What had to be put right, and how often: the memory by which two programs that fight do not spin.

Whoever undoes our work may do so for ever: a script in a loop, another manager that wants the same rule otherwise.
Repairs of one damage that come again and again are made after a pause that doubles, until nobody does it any more;
others are made at once. Knows no rules and makes no repairs. Times are those of a clock that nobody sets.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
OFTEN = 5  # repairs of one damage within `WINDOW` that are no fight yet
MANY = 50  # and of one thing, whatever the damage: somebody who undoes something else each time
WINDOW = 10.0  # seconds
PAUSES = (0.5, 30.0)  # seconds before a repair in a fight: the first, and the longest
PEACE = 60.0  # seconds without a repair after which a fight is over


@dataclass(slots=True)
class _Record:
    """Repairs of one damage to our table, the settings or other people's firewalls, or of any to one of them."""

    limit: int
    lately: deque[float]
    pause: float = 0.0  # before the next repair; 0 in peace
    against: str = ""


class Repairs:
    """The repairs of one writer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[tuple[str, str], _Record] = {}  # by thing and damage; by thing and "" for any
        self._count = 0
        self._last: dict[str, Any] | None = None

    def note(self, thing: str, what: str, process: str, seconds: float, *, spell: float = 0.0) -> None:
        """Take in a repair and tell of it: what was wrong, who did it, how long putting it right took.

        In peace, repairs of one damage that begin within a `spell` are one: of something done in many steps.
        """
        self._count += 1
        self._last = {"at": time.time(), "what": what, "process": process, "seconds": round(seconds, 3)}
        log.warning("%s: %s; put right in %.0f ms", process, what, 1000 * seconds)
        self._make_peace()
        limits = (what, OFTEN), ("", MANY)
        begun = [self._enter((thing, damage), limit, process, spell) for damage, limit in limits]
        if any(begun):
            log.warning(
                "%s undoes again and again what published ports need (%s): from now on it is put right after a "
                "pause, of up to %.0f s. End that program, or have it leave alone what is not its own",
                *(process, what, PAUSES[1]),
            )

    def pause(self, thing: str, what: str | None = None) -> float:
        """Give the seconds to wait before a damage is repaired; of None, before any of those fought over."""
        self._make_peace()
        now = self._clock()
        waits = [
            record.pause - (now - record.lately[-1])
            for (name, damage), record in self._records.items()
            if name == thing and record.pause and (what is None or damage in (what, ""))
        ]
        return max(0.0, *waits) if waits else 0.0

    def to_json(self) -> dict[str, Any]:
        """Give the number of repairs, the last one (its time is of the day), and who fights over what."""
        self._make_peace()
        fighting = {thing: record.against for (thing, _), record in self._records.items() if record.pause}
        return {"repairs": self._count, "last_repair": self._last, "fighting": fighting}

    def _enter(self, name: tuple[str, str], limit: int, process: str, spell: float) -> bool:
        """Enter a repair; says whether a fight has begun with it."""
        record = self._records.setdefault(name, _Record(limit, deque(maxlen=limit + 1)))
        record.against = process
        if record.lately and not record.pause and self._clock() - record.lately[-1] < spell:
            return False
        record.lately.append(self._clock())
        if record.pause:
            record.pause = min(2 * record.pause, PAUSES[1])
            return False
        if len(record.lately) > limit and record.lately[-1] - record.lately[0] < WINDOW:
            record.pause = PAUSES[0]
            return True
        return False

    def _make_peace(self) -> None:
        """Forget what has not been repaired for long."""
        now = self._clock()
        self._records = {name: r for name, r in self._records.items() if now - r.lately[-1] <= PEACE}
