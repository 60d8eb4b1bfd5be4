"""Where to go on looking for a free port, for requests of one kind, while nothing is given back.

Without it, a thousand requests for any port of one range would each walk over the ports of those before it.
"""

from __future__ import annotations


class Vacancies:
    """Ports not known to be taken. Each look-up and each `take` costs next to nothing, whatever is taken."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}  # a taken port -> where to look instead

    def take(self, port: int) -> None:
        """Count a port as taken from now on."""
        self._next[port] = port + 1

    def first(self, port: int) -> int:
        """Give the first port from this one on that is not known to be taken; it may lie beyond any range."""
        passed = []
        while port in self._next:
            passed.append(port)
            port = self._next[port]
        for each in passed:  # the next look-up takes one step
            self._next[each] = port
        return port
