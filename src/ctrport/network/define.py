"""What a new network may be: the words of `ctrport network create`, checked, and what they leave open, chosen.

Data in, data out: what has to be known of the host is given by the caller.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING

from ctrport.errors import ConflictError, HostError, InputError
from ctrport.network import networks
from ctrport.network.networks import Network
from ctrport.run.names import check_identifier

if TYPE_CHECKING:
    from collections.abc import Collection

    from ctrport.network.proc import NetworkNamespace

RESERVED = frozenset({"host", "none", "container", "cni"})  # `--network` reads them as something else
PREFIX4 = (8, 30)  # a /30 has room for one container
PREFIX6 = (16, 122)
MTU = (68, 65535)  # include/uapi/linux/if_ether.h: ETH_MIN_MTU, ETH_MAX_MTU
MTU_IPV6 = 1280  # RFC 8200, section 5
BRIDGE_PREFIX = "cp-"
INTERFACE_LIMIT = 15  # IFNAMSIZ - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for; None is left to us."""

    name: str
    ipv4: IPv4Network | None
    gateway: IPv4Address | None
    ipv6: IPv6Network | None
    with_ipv6: bool | None
    mtu: int | None
    internal: bool
    isolate: bool


def read(
    *,
    name: str,
    subnet: str | None = None,
    gateway: str | None = None,
    ipv6: bool | None = None,
    ipv6_subnet: str | None = None,
    mtu: int | None = None,
    internal: bool = False,
    isolate: bool = False,
) -> Wish:
    """Check the words that need no look at a host. InputError names the option and what mends it."""
    check_identifier("the network name", name)
    if name in RESERVED:
        raise InputError(f"a network cannot be named {name!a}: run --network has that word for something else")
    if ipv6_subnet is not None and ipv6 is False:
        raise InputError("--ipv6-subnet and --no-ipv6 contradict each other")
    wish = Wish(
        name=name,
        ipv4=_subnet4(subnet) if subnet is not None else None,
        gateway=_gateway(gateway) if gateway is not None else None,
        ipv6=_subnet6(ipv6_subnet) if ipv6_subnet is not None else None,
        with_ipv6=True if ipv6_subnet is not None else ipv6,
        mtu=mtu,
        internal=internal,
        isolate=isolate,
    )
    if wish.gateway is not None and wish.ipv4 is None:
        raise InputError("--gateway needs --subnet: the address must lie in it")
    if wish.gateway is not None and wish.ipv4 is not None:
        ends = (wish.ipv4.network_address, wish.ipv4.broadcast_address)
        if wish.gateway not in wish.ipv4 or wish.gateway in ends:
            raise InputError(
                f"--gateway {wish.gateway} is not an address for a host in --subnet {wish.ipv4}",
                hint=f"for example {wish.ipv4[1]}, which is what is taken without --gateway",
            )
    if mtu is not None and not MTU[0] <= mtu <= MTU[1]:
        raise InputError(f"--mtu {mtu} is not from {MTU[0]} to {MTU[1]}")
    if mtu is not None and mtu < MTU_IPV6 and wish.with_ipv6:
        raise InputError(f"--mtu {mtu}: IPv6 needs {MTU_IPV6} at least", hint="--no-ipv6, or a larger MTU")
    return wish


def choose(
    wish: Wish, *, others: Collection[Network], here: NetworkNamespace, interfaces: Collection[str], ipv6: bool
) -> Network:
    """Give the network that was wished for, on a host with these networks, routes and interfaces.

    `ipv6` says whether new interfaces of this host can have IPv6 addresses. ConflictError for a name that is taken
    and a subnet that overlaps, HostError for what the host cannot do.
    """
    if any(other.name == wish.name for other in others):
        raise ConflictError(
            f"a network named {wish.name} exists already", hint=f"ctrport network inspect {wish.name}"
        )
    for option, subnet in (("--subnet", wish.ipv4), ("--ipv6-subnet", wish.ipv6)):
        if subnet is not None:
            _check_free(option, subnet, others, here)
    ipv4 = wish.ipv4 or networks.choose_subnet([*(r.network for r in here.routes), *(n.ipv4 for n in others)])
    if wish.with_ipv6 and not ipv6:
        raise HostError(
            "--ipv6: new interfaces of this host get no IPv6 addresses",
            hint="sysctl net.ipv6.conf.default.disable_ipv6",
        )
    wanted6 = ipv6 and (wish.mtu is None or wish.mtu >= MTU_IPV6) if wish.with_ipv6 is None else wish.with_ipv6
    ipv6_subnet = wish.ipv6 or (networks.unique_local() if wanted6 else None)
    if ipv6_subnet is not None and ipv6_subnet.num_addresses < ipv4.num_addresses:
        raise InputError(
            f"--ipv6-subnet {ipv6_subnet} has fewer addresses than {ipv4}: a container has the same number in both",
            hint="a /64, as usual",
        )
    return Network(
        name=wish.name,
        bridge=bridge_name(wish.name, interfaces),
        ipv4=ipv4,
        ipv6=ipv6_subnet,
        gateway=wish.gateway if wish.gateway != ipv4[1] else None,
        mtu=wish.mtu,
        internal=wish.internal,
        isolate=wish.isolate,
    )


def bridge_name(name: str, taken: Collection[str]) -> str:
    """Give a bridge's name that tells the network's, as long as an interface's may be, and that nobody has."""
    if name == networks.DEFAULT:
        return networks.DEFAULT_BRIDGE
    plain = f"{BRIDGE_PREFIX}{name}"
    # A dot is a separator in the names of sysctl(8).
    if len(plain) <= INTERFACE_LIMIT and "." not in name and plain not in taken:
        return plain
    stem = re.sub(r"[^A-Za-z0-9]", "", name)[:6]
    for number in itertools.count():
        digest = hashlib.sha256(f"{name}/{number}".encode()).hexdigest()[:5]
        candidate = f"{BRIDGE_PREFIX}{stem}-{digest}"
        if candidate not in taken:
            return candidate
    raise AssertionError


def _check_free(
    option: str, subnet: IPv4Network | IPv6Network, others: Collection[Network], here: NetworkNamespace
) -> None:
    hint = f"ip route; another {option}, or none: then a free one is chosen"
    for other in others:
        for theirs in (other.ipv4, other.ipv6):
            if theirs is not None and theirs.version == subnet.version and subnet.overlaps(theirs):
                raise ConflictError(f"{option} {subnet} overlaps network {other.name} ({theirs})", hint=hint)
    for route in here.routes:
        if route.network.prefixlen and route.network.version == subnet.version and subnet.overlaps(route.network):
            raise ConflictError(
                f"{option} {subnet} overlaps this host's route to {route.network} on {route.interface}", hint=hint
            )
    for address in here.addresses:
        if address.version == subnet.version and address in subnet:
            raise ConflictError(f"{option} {subnet} has this host's own address {address} in it", hint=hint)


def _subnet4(text: str) -> IPv4Network:
    subnet = _subnet("--subnet", text)
    if not isinstance(subnet, IPv4Network):
        raise InputError(f"--subnet {text!a} is not an IPv4 subnet", hint=f"--ipv6-subnet {subnet}")
    _check_size("--subnet", subnet, PREFIX4)
    return subnet


def _subnet6(text: str) -> IPv6Network:
    subnet = _subnet("--ipv6-subnet", text)
    if not isinstance(subnet, IPv6Network):
        raise InputError(f"--ipv6-subnet {text!a} is not an IPv6 subnet", hint=f"--subnet {subnet}")
    _check_size("--ipv6-subnet", subnet, PREFIX6)
    return subnet


def _subnet(option: str, text: str) -> IPv4Network | IPv6Network:
    try:
        subnet = ip_network(text, strict=False)
    except ValueError:
        raise InputError(f"{option} {text!a} is not ADDRESS/LENGTH", hint="for example 10.1.0.0/24") from None
    if "/" in text and str(subnet.network_address) != str(ip_network(text.partition("/")[0]).network_address):
        raise InputError(f"{option} {text} is an address in a subnet", hint=f"{option} {subnet}")
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or subnet.is_unspecified:
        raise InputError(f"{option} {subnet} is not for use on a network of hosts", hint="for example 10.1.0.0/24")
    return subnet


def _check_size(option: str, subnet: IPv4Network | IPv6Network, prefixes: tuple[int, int]) -> None:
    shortest, longest = prefixes
    if not shortest <= subnet.prefixlen <= longest:
        size = "small" if subnet.prefixlen > longest else "large"
        raise InputError(f"{option} {subnet} is too {size}", hint=f"a length from /{shortest} to /{longest}")


def _gateway(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        kind = "the IPv6 gateway has the same number in its subnet" if _is_ipv6(text) else "for example 10.1.0.1"
        raise InputError(f"--gateway {text!a} is not an IPv4 address", hint=kind) from None


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
