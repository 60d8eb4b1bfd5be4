"""The outcome of asking for a host port, and the facts of a host that decide it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ctrport.model.ports import PortMapping, Protocol
    from ctrport.model.workload import Key, Pod

IPAddress = IPv4Address | IPv6Address


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
    """A socket of this host that a mapping of the same port would shadow."""

    protocol: Protocol
    port: int
    address: IPAddress  # 0.0.0.0 or :: for every address
    families: tuple[int, ...]  # 4, 6 or both: a [::] socket without IPV6_V6ONLY takes IPv4 as well
    holder: str = ""  # "redis-server (pid 811)" where that could be found out
    inode: int = 0  # of the socket, by which its process can be found


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What has to be known of the host to give out its ports."""

    addresses: frozenset[IPAddress] | None = None  # None: unknown, every host IP is taken on trust
    automatic: tuple[int, int] = (32768, 60999)  # net.ipv4.ip_local_port_range; the kernel's default
    reserved: frozenset[int] = frozenset()  # net.ipv4.ip_local_reserved_ports
    listeners: tuple[Listener, ...] = ()

    def has(self, address: IPAddress) -> bool:
        """Whether packets to this address come to this host. All of 127.0.0.0/8 does."""
        if self.addresses is None or address.is_unspecified or address in self.addresses:
            return True
        return address.version == 4 and address.is_loopback  # noqa: PLR2004 - an IP version


def is_wildcard(address: IPAddress | None) -> bool:
    """Whether a host IP stands for every address (of its family, or of both when None)."""
    return address is None or address.is_unspecified


def socket_text(address: IPAddress | None, port: int, protocol: Protocol) -> str:
    """`8080/tcp`, `127.0.0.1:8080/tcp`, `[2001:db8::1]:8080/tcp`."""
    if address is None:
        return f"{port}/{protocol}"
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    return f"{host}:{port}/{protocol}"
