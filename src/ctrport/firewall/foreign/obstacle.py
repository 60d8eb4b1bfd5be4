"""What stands in the way of published ports, and whose traffic it is that must pass. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What must get through other people's forward chains."""

    mark: int  # the bit of the conntrack mark on everything that we translate
    bridges: frozenset[str] = frozenset()  # of our own networks that lead out
    internal: frozenset[str] = frozenset()  # of our own networks whose containers reach each other only
    endpoints: frozenset[str] = frozenset()  # towards published containers of whatever network
    uplinks: frozenset[str] = frozenset()  # interfaces of the default routes
    isolated: frozenset[str] = frozenset()  # bridges that somebody else closes to outsiders by his own rules

    def __bool__(self) -> bool:
        """Say whether there is anything to let through."""
        return bool(self.bridges or self.internal or self.endpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """A place that drops what we forward and that was not mended: where, what, and the commands that mend it."""

    where: str  # "nftables table inet filter, chain forward"
    what: str  # "its policy drops forwarded packets"
    fix: tuple[str, ...]  # commands, to be run as they are
    unread: bool = False  # whether it drops anything could not be seen

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; mend it with: {'; '.join(self.fix)}"
