"""Ports that requests had before: given by an earlier writer, or to an earlier task of the same container.

A request for a port of the host's choice gets its former one again where it can, so that a restart changes no port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from ctrport.model.bindings import Incumbent
    from ctrport.model.ports import PortMapping, Protocol
    from ctrport.model.request import Request
    from ctrport.model.workload import Key


class FormerPorts:
    """What the kernel served when this writer began, by what names it there, and what was given since."""

    def __init__(self, incumbents: Mapping[Incumbent, Iterable[int]]) -> None:
        self._served = {who: set(ports) for who, ports in incumbents.items()}
        self._owners: dict[tuple[Protocol, int], set[Key]] = {}
        for who, ports in self._served.items():
            for port in ports:
                self._owners.setdefault((who.protocol, port), set()).add(who.owner)
        self._last: dict[Key, dict[PortMapping, int]] = {}

    def serves(self, request: Request, port: int) -> bool:
        """Say whether the kernel has served a request at this port all along."""
        return port in self._served.get(request.incumbent, ())

    def of(self, request: Request, pool: tuple[int, int], exact: Container[int]) -> int | None:
        """Give the port that a floating request had, unless its container asks for that one by number.

        Of several, one that nobody else had too, in the other family: he may want no other.
        """
        low, high = pool
        protocol = request.mapping.protocol
        last = self._last.get(request.owner, {}).get(request.mapping)
        served = sorted(
            self._served.get(request.incumbent, ()),
            key=lambda port: (len(self._owners.get((protocol, port), ())) > 1, port),
        )
        former = [p for p in (last, *served) if p is not None and low <= p <= high and p not in exact]
        return former[0] if former else None

    def leave(self, request: Request) -> None:
        """Take note that a request goes, with the port it has."""
        if request.floating and request.port is not None:
            self._last.setdefault(request.owner, {})[request.mapping] = request.port
        self._served.get(request.incumbent, set()).discard(request.port or 0)

    def forget(self, key: Key) -> None:
        """Forget what a container had: it was removed."""
        self._last.pop(key, None)
