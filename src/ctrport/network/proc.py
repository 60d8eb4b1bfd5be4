"""Addresses and routes of a network namespace, read from /proc/PID/net: no fork, no setns, no netlink library.

The parsers are pure. A directory descriptor of /proc/PID pins the process: once it is gone every read fails with
ESRCH or ENOENT, so a reused pid can never lend its addresses to somebody else's mapping.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ctrport.host import pseudo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# include/uapi/linux/if_addr.h: not usable (yet) as a target. TENTATIVE, DADFAILED, DEPRECATED, and TEMPORARY.
UNUSABLE = 0x40 | 0x08 | 0x20 | 0x01
GLOBAL_SCOPE = 0x00
ROUTE_UP, ROUTE_REJECT = 0x0001, 0x0200  # include/uapi/linux/route.h
RECENT = 2.0  # seconds
TICKS = os.sysconf("SC_CLK_TCK")  # a second
ROUTE_ADVERTISED = 0x00040000  # RTF_ADDRCONF, include/uapi/linux/ipv6_route.h


class Route(NamedTuple):
    """A route of the main table; `gateway` tells a connected network from one behind a router."""

    network: IPv4Network | IPv6Network
    interface: str
    gateway: bool
    metric: int


class NetworkNamespace(NamedTuple):
    """What is to be known of a namespace: all of its own addresses, and its routes."""

    addresses: tuple[IPv4Address | IPv6Address, ...]
    routes: tuple[Route, ...]

    def interface_towards(self, address: IPv4Address | IPv6Address) -> str | None:
        """Give the interface of the longest route to an address, as the kernel chooses in the main table."""
        return _longest(self.routes, address)

    @property
    def ipv4(self) -> IPv4Address | None:
        """The IPv4 address that a container is reached at."""
        found = self._main_address(4)
        return found if isinstance(found, IPv4Address) else None

    @property
    def ipv6(self) -> IPv6Address | None:
        """The IPv6 address that a container is reached at."""
        found = self._main_address(6)
        return found if isinstance(found, IPv6Address) else None

    def _main_address(self, version: int) -> IPv4Address | IPv6Address | None:
        """On the default route's link, else the first."""
        candidates = [a for a in self.addresses if a.version == version]
        defaults = [r for r in self.routes if r.network.version == version and not r.network.prefixlen]
        if defaults:
            uplink = min(defaults, key=lambda r: r.metric).interface
            for address in candidates:
                if any(
                    r.interface == uplink and not r.gateway and r.network.prefixlen and address in r.network
                    for r in self.routes
                    if r.network.version == version
                ):
                    return address
        return candidates[0] if candidates else None


class Process(NamedTuple):
    """A process's namespace, and when it was started at the latest, by the clock of `uptime`."""

    namespace: NetworkNamespace
    started: float


def read(pid: int | str = "thread-self") -> NetworkNamespace:
    """Read the namespace of a process. OSError when the process is gone."""
    with _directory(pid) as directory:
        return _namespace(directory)


def read_process(pid: int) -> Process | None:
    """Read a process, None when it is gone."""
    try:
        with _directory(pid) as directory:
            return Process(_namespace(directory), _started(directory))
    except OSError:
        return None


def started(pid: int) -> float | None:
    """Give when a process was started at the latest, by the clock of `uptime`; None when it is gone."""
    try:
        with _directory(pid) as directory:
            return _started(directory)
    except OSError:
        return None


def uptime() -> float:
    """Give the seconds since boot, of the clock that processes' starts are given in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def uptime_at(nanoseconds: int) -> float | None:
    """Give `uptime` as it was at a moment since the epoch; None when that is not of the last seconds.

    The clock of the epoch may have been set meanwhile, which no one can tell from what it says.
    """
    age = time.time() - nanoseconds / 1e9
    return uptime() - age if 0 <= age <= RECENT else None


@contextmanager
def _directory(pid: int | str) -> Iterator[int]:
    directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield directory
    finally:
        os.close(directory)


def _started(directory: int) -> float:
    # proc(5): the 22nd field, in ticks since boot; the second one, in brackets, may have any character in it.
    return (int(_text(directory, "stat").rpartition(")")[2].split()[19]) + 1) / TICKS


def _namespace(directory: int) -> NetworkNamespace:
    return _parsed(
        _text(directory, "net/fib_trie"),
        _text(directory, "net/if_inet6", optional=True),
        _text(directory, "net/route"),
        _text(directory, "net/ipv6_route", optional=True),
    )


@lru_cache(maxsize=1024)  # two kilobytes each; a full pass reads them all anew, and hardly any has changed
def _parsed(fib_trie: str, if_inet6: str, route: str, ipv6_route: str) -> NetworkNamespace:
    return NetworkNamespace(
        addresses=(*ipv4_addresses(fib_trie), *ipv6_addresses(if_inet6)),
        routes=(*ipv4_routes(route), *ipv6_routes(ipv6_route)),
    )


def local_addresses() -> set[IPv4Address | IPv6Address]:
    """Give every address that packets to this namespace may have, whatever its scope; 127.0.0.0/8 goes unsaid."""
    net = Path("/proc/thread-self/net")
    found: set[IPv4Address | IPv6Address] = set(ipv4_addresses((net / "fib_trie").read_text("ascii")))
    if (net / "if_inet6").exists():
        lines = (net / "if_inet6").read_text("ascii").splitlines()
        found |= {IPv6Address(int(line.split()[0], 16)) for line in lines}
    return found


def advertised_interfaces() -> set[str]:
    """Give the interfaces of this namespace that have learned a route from a router advertisement."""
    path = Path("/proc/thread-self/net/ipv6_route")
    fields = [line.split() for line in path.read_text("ascii").splitlines()] if path.exists() else []
    return {f[9] for f in fields if int(f[8], 16) & ROUTE_ADVERTISED and f[9] != "lo"}


def ipv4_addresses(fib_trie: str) -> list[IPv4Address]:
    """Give the local addresses of a fib_trie other than loopback, in its order (by number)."""
    found: dict[IPv4Address, None] = {}
    leaf = ""
    for line in fib_trie.splitlines():
        text = line.strip()
        if text.startswith("|-- "):
            leaf = text[4:]
        elif text == "/32 host LOCAL" and not leaf.startswith("127."):
            found[IPv4Address(leaf)] = None
    return list(found)


def ipv6_addresses(if_inet6: str) -> list[IPv6Address]:
    """Give the usable addresses of global scope, in the kernel's order."""
    found = []
    for line in if_inet6.splitlines():
        address, _, _, scope, flags, _ = line.split()
        if int(scope, 16) == GLOBAL_SCOPE and not int(flags, 16) & UNUSABLE:
            found.append(IPv6Address(int(address, 16)))
    return found


def ipv4_routes(route: str) -> list[Route]:
    """Read /proc/net/route: addresses are hexadecimal in the machine's byte order (little-endian here)."""
    found = []
    for line in route.splitlines()[1:]:
        name, destination, gateway, flags, _, _, metric, mask, *_ = line.split()
        if int(flags, 16) & ROUTE_UP and not int(flags, 16) & ROUTE_REJECT:
            prefix = int(mask, 16).bit_count()
            network = IPv4Network((_swapped(destination), prefix), strict=False)
            found.append(Route(network, name, int(gateway, 16) != 0, int(metric)))
    return found


def ipv6_routes(ipv6_route: str) -> list[Route]:
    """Read /proc/net/ipv6_route, leaving out local, anycast and multicast entries and those on lo."""
    found = []
    for line in ipv6_route.splitlines():
        destination, prefix, _, _, gateway, metric, _, _, flags, name = line.split()
        if name == "lo" or not int(flags, 16) & ROUTE_UP or int(flags, 16) & ROUTE_REJECT:
            continue
        network = IPv6Network((int(destination, 16), int(prefix, 16)), strict=False)
        if not network.is_multicast:
            found.append(Route(network, name, int(gateway, 16) != 0, int(metric, 16)))
    return found


def _swapped(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), "little")


def _longest(routes: Iterable[Route], address: IPv4Address | IPv6Address) -> str | None:
    matching = [r for r in routes if r.network.version == address.version and address in r.network]
    best = max(matching, key=lambda r: (r.network.prefixlen, -r.metric), default=None)
    return best.interface if best else None


def _text(directory: int, name: str, *, optional: bool = False) -> str:
    try:
        return pseudo.read(name, directory).decode("utf-8", "replace")
    except FileNotFoundError:
        if optional:  # a kernel without IPv6
            return ""
        raise
