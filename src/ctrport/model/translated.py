"""Host ports that others translate to containers: hostPorts of pods, by CNI's portmap.

Not for us to give out or to refuse: their rules are in the kernel whatever the ledger decides.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrport.model.bindings import Listener
    from ctrport.model.ports import Protocol
    from ctrport.model.workload import Key


class Translated:
    """Ports by the container that has them, and who has a port."""

    def __init__(self) -> None:
        self._of: dict[Key, tuple[Listener, ...]] = {}
        self._at: defaultdict[tuple[Protocol, int], list[Listener]] = defaultdict(list)

    def put(self, key: Key, ports: tuple[Listener, ...]) -> Iterable[tuple[Protocol, int]]:
        """Set what is translated to a container; gives the ports for which that changed something."""
        former = self._of.pop(key, ())
        if ports:
            self._of[key] = ports
        if ports == former:
            return ()
        names = {(each.protocol, each.port): None for each in (*former, *ports)}
        for each in former:
            self._at[each.protocol, each.port].remove(each)
        for each in ports:
            self._at[each.protocol, each.port].append(each)
        for name in names:
            if not self._at[name]:
                del self._at[name]
        return names

    def at(self, protocol: Protocol, port: int) -> tuple[Listener, ...]:
        """Give who has a port."""
        return tuple(self._at.get((protocol, port), ()))
