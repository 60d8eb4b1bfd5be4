"""Which packets to this host a rule of somebody's sees, as far as that is a matter of port, protocol and address.

Pure. A path through rules begins with all packets and is narrowed by each match on it. What begins to name ports on
it is remembered as the place: "chain DOCKER of iptables nat".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING

from ctrport.model.bindings import Listener
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from ctrport.model.bindings import IPAddress

LOOPBACK = IPv4Address("127.0.0.1")
WILDCARDS: dict[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}
EVERY_PORT = (0, 65535)
# By how names of chains and tables begin that programs are known by.
CHAIN_OWNERS = (
    ("DOCKER", "Docker"),
    ("CNI-", "CNI portmap"),
    ("NETAVARK", "netavark"),
    ("KUBE-", "kube-proxy"),
)
TABLE_OWNERS = {
    "docker-bridges": "Docker",
    "cni_hostport": "CNI portmap",
    "netavark": "netavark",
    "kube-proxy": "kube-proxy",
    "firewalld": "firewalld",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The packets that have come so far."""

    families: frozenset[int] = frozenset({4, 6})
    protocols: frozenset[Protocol] = frozenset(Protocol)
    ports: tuple[tuple[int, int], ...] = (EVERY_PORT,)
    addresses: frozenset[IPAddress] | None = None  # None: all of the host's
    place: str = ""  # where ports were named

    def narrowed(
        self,
        *,
        families: Collection[int] | None = None,
        protocols: Collection[Protocol] | None = None,
        ports: Iterable[tuple[int, int]] | None = None,
        addresses: frozenset[IPAddress] | None = None,
        place: str = "",
    ) -> Scope | None:
        """Give the part of it that also has these; None when nothing is left."""
        found = replace(
            self,
            families=self.families if families is None else self.families & set(families),
            protocols=self.protocols if protocols is None else self.protocols & set(protocols),
        )
        if ports is not None:
            common = ((max(a, c), min(b, d)) for a, b in self.ports for c, d in ports)
            found = replace(found, ports=tuple(p for p in common if p[0] <= p[1]), place=self.place or place)
        if addresses is not None:
            both = addresses if self.addresses is None else self.addresses & addresses
            found = replace(found, addresses=frozenset(a for a in both if a.version in found.families))
            found = replace(found, families=frozenset(a.version for a in found.addresses or ()))
        return found if found.families and found.protocols and found.ports else None

    def listeners(self) -> Iterator[Listener]:
        """Give what a translation of these packets takes. One of all ports takes none: that is a proxy's."""
        if self.ports == (EVERY_PORT,):
            return
        places: list[tuple[IPAddress, tuple[int, ...]]]
        if self.addresses is None:
            places = [(WILDCARDS[max(self.families)], tuple(sorted(self.families)))]
        else:
            places = [(address, (address.version,)) for address in sorted(self.addresses, key=str)]
        for protocol in sorted(self.protocols):
            for low, high in self.ports:
                for port in range(max(low, 1), high + 1):
                    for address, families in places:
                        yield Listener(protocol, port, address, families, self.place, translated=True)


def of_host(networks: Iterable[str], local: Collection[IPAddress]) -> frozenset[IPAddress]:
    """Give the addresses of this host that lie in some networks. All of 127.0.0.0/8 is its own."""
    found: set[IPAddress] = set()
    for text in networks:
        try:
            network = ip_network(text, strict=False)
        except ValueError:  # a mask that is no prefix
            continue
        if network.version == 4 and network.is_loopback and network.num_addresses == 1:  # noqa: PLR2004 - IPv4
            found.add(network.network_address)
        found.update(address for address in (LOOPBACK, *local) if address in network)
    return frozenset(found)


def chain_place(chain: str, table: str) -> str:
    """Name a chain of iptables, and whose it is if that is known: `table` as in "iptables nat"."""
    owner = next((name for start, name in CHAIN_OWNERS if chain.startswith(start)), "")
    return _place(owner, f"chain {_plain(chain)} of {table}")


def table_place(family: str, table: str) -> str:
    """Name an nftables table, and whose it is if that is known."""
    return _place(TABLE_OWNERS.get(table, ""), f"nftables table {family} {_plain(table)}")


def _place(owner: str, where: str) -> str:
    return f"{owner} ({where})" if owner else where


def _plain(name: str) -> str:
    """Take out of a name what a terminal would not print as it is."""
    return re.sub(r"[^\x21-\x7e]", "?", name)
