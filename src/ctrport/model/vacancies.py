"""Where to go on looking for a free port, for requests of one kind, while nothing is given back.

Without it, a thousand requests for any port of one range would each walk over the ports of those before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Vacancies:
    """Ports not known to be taken. To pass over those that are costs next to nothing, however many they are."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}  # a taken port -> where to look instead

    def find(self, spans: Iterable[tuple[int, int]], is_free: Callable[[int], bool]) -> int | None:
        """Give the first port of some spans, first and last, that is free, and count it as taken from now on."""
        for begin, end in spans:
            while (port := self._first(begin)) <= end:
                self._next[port] = port + 1
                if is_free(port):
                    return port
        return None

    def _first(self, port: int) -> int:
        """Give the first port from this one on that is not known to be taken; it may lie beyond any span."""
        passed = []
        while port in self._next:
            passed.append(port)
            port = self._next[port]
        for each in passed:  # the next look-up takes one step
            self._next[each] = port
        return port
