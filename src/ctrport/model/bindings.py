"""The outcome of asking for a host port, and the facts of a host that decide it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

from ctrport.model.ports import is_wildcard as is_wildcard  # noqa: PLC0414 - a word of bindings, too

if TYPE_CHECKING:
    from ctrport.model.ports import PortMapping, Protocol
    from ctrport.model.workload import Key, Pod

IPAddress = IPv4Address | IPv6Address
IPV6_LOOPBACK = IPv6Address("::1")  # no packet from it can leave the host: never in the kernel's maps, but relayed


class State(enum.StrEnum):
    """ACTIVE is served, WAITING gets its port when the holder lets go, REFUSED needs another request."""

    ACTIVE = "active"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One port mapping of one container, and what became of it."""

    owner: Key
    mapping: PortMapping  # as asked for
    host_port: int | None  # as given; None: none yet
    state: State
    reason: str = ""
    ipv4: IPv4Address | None = None  # of the container, where the mapping serves IPv4
    ipv6: IPv6Address | None = None
    pod: Pod | None = None  # that the owner is

    @property
    def families(self) -> tuple[int, ...]:
        """In which the host port is held."""
        return host_families(self.mapping.host_ip, self.ipv4, self.ipv6)

    def to_json(self) -> dict[str, Any]:
        """Give the mapping with the host port that it got, its state and reason."""
        return {
            **self.mapping.to_json(),
            "host_port": self.host_port,
            "state": str(self.state),
            "reason": self.reason,
        }


class Change(NamedTuple):
    """What became of one request; None stands for not there."""

    old: Binding | None
    new: Binding | None


class Incumbent(NamedTuple):
    """A mapping that the kernel serves already: its owner keeps the port when the ledger is made anew."""

    owner: Key
    protocol: Protocol
    host_ip: IPAddress | None  # None for every address, of whichever family
    container_port: int


class Listener(NamedTuple):
    """Who else has a port of this host: a socket that a mapping would shadow, or somebody's own translation."""

    protocol: Protocol
    port: int
    address: IPAddress  # 0.0.0.0 or :: for every address
    families: tuple[int, ...]  # 4, 6 or both: a [::] socket without IPV6_V6ONLY takes IPv4 as well
    holder: str = ""  # "redis-server (pid 811)" where that could be found out
    inode: int = 0  # of the socket, by which its process can be found
    translated: bool = False  # no socket: nat rules of `holder` send the port elsewhere

    def reason(self) -> str:
        """Say who has the port, as people are told that they cannot have it."""
        if self.translated:
            address = None if is_wildcard(self.address) else self.address
            return f"{socket_text(address, self.port, self.protocol)} is translated by {self.holder}"
        where = socket_text(self.address, self.port, self.protocol)
        return f"{where} is held by {self.holder or 'a process that listens there'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What has to be known of the host to give out its ports."""

    addresses: frozenset[IPAddress] | None = None  # None: unknown, every host IP is taken on trust
    automatic: tuple[int, int] = (32768, 60999)  # net.ipv4.ip_local_port_range; the kernel's default
    reserved: frozenset[int] = frozenset()  # net.ipv4.ip_local_reserved_ports
    listeners: tuple[Listener, ...] = ()
    relays: bool = False  # tcp from [::1], which the kernel cannot lead to containers

    def has(self, address: IPAddress) -> bool:
        """Whether packets to this address come to this host. All of 127.0.0.0/8 does, and ::1."""
        return self.addresses is None or address.is_unspecified or address.is_loopback or address in self.addresses

    def is_like(self, other: Host) -> bool:
        """Whether both judge requests alike, but for who listens."""
        return replace(self, listeners=()) == replace(other, listeners=())


def host_families(host_ip: IPAddress | None, ipv4: IPv4Address | None, ipv6: IPv6Address | None) -> tuple[int, ...]:
    """Give the families of the host port of a mapping to a container's addresses.

    Those of the addresses, as the kernel translates within a family. A relay does not: [::1] is IPv6 whatever the
    container has.
    """
    if host_ip is not None and host_ip == IPV6_LOOPBACK:  # None would be compared by way of an exception
        return (6,) if ipv4 or ipv6 else ()
    return tuple(family for family, address in ((4, ipv4), (6, ipv6)) if address is not None)


def socket_text(address: IPAddress | None, port: int | str, protocol: Protocol) -> str:
    """`8080/tcp`, `127.0.0.1:8080/tcp`, `[2001:db8::1]:8080-8089/tcp`."""
    if address is None:
        return f"{port}/{protocol}"
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    return f"{host}:{port}/{protocol}"
