"""Bridges, veth pairs over netlink by pyroute2.

pyroute2 costs 150 ms to import and is therefore imported where it is used. A message takes it a millisecond, which
a container waits for: what can be seen without one is. Every function may be called twice: what is there already is
left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrport.errors import HostError, KernelError
from ctrport.host import sysctl
from ctrport.network import netns, proc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from ctrport.network.networks import Network

log = logging.getLogger(__name__)
CONTAINER_INTERFACE = "eth0"
SIOCGIFMTU = 0x8921  # include/uapi/linux/sockios.h
NODAD = 0x02  # IFA_F_NODAD: an address of our own subnet needs no wait for duplicates
DEFAULT_MTU = 1500


def ensure_bridge(network: Network) -> None:
    """Make a network's bridge, with its gateway addresses, if it is not there."""
    if _is_complete(network):
        return
    from pyroute2 import IPRoute  # noqa: PLC0415 - see the module's docstring

    with _errors(f"make the bridge {network.bridge}"), IPRoute() as ip:
        if _index(network.bridge) is None:
            with _passing_over(errno.EEXIST):
                ip.link(
                    "add",
                    ifname=network.bridge,
                    kind="bridge",
                    address=hardware_address(network.gateway4),  # else it changes with the ports
                    mtu=network.mtu or _uplink_mtu(ip),
                )
        index = socket.if_nametoindex(network.bridge)
        _refuse_advertisements(network.bridge)
        for gateway, subnet in _gateways(network):
            _add_address(ip, index, gateway, subnet.prefixlen)
        ip.link("set", index=index, state="up")


def remove_link(name: str) -> bool:
    """Remove an interface of the host; says whether there was one."""
    if (index := _index(name)) is None:
        return False
    from pyroute2 import IPRoute  # noqa: PLC0415

    # ENODEV: its peer's namespace is just going, and takes it along.
    with _errors(f"remove the interface {name}"), IPRoute() as ip, _passing_over(errno.ENODEV):
        ip.link("del", index=index)
    return True


def ensure_container(network: Network, namespace: str, ipv4: IPv4Address) -> None:
    """Make a container's namespace with lo, eth0, its addresses and default routes, and join it to the bridge."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    outer = host_interface(namespace)
    if not netns.is_mounted(netns.DIRECTORY / namespace):
        remove_link(outer)  # its other end is in a namespace that nobody can name any more
    path = netns.create(namespace)
    with _errors(f"join the namespace {namespace} to {network.bridge}"), IPRoute() as ip:
        bridge = socket.if_nametoindex(network.bridge)
        if _index(outer) is None:
            mtu = _mtu(network.bridge)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                inner = {
                    "ifname": CONTAINER_INTERFACE,
                    "net_ns_fd": descriptor,
                    "address": hardware_address(ipv4),
                    "mtu": mtu,
                }
                ip.link("add", ifname=outer, kind="veth", mtu=mtu, peer=inner)
            finally:
                os.close(descriptor)
        index = socket.if_nametoindex(outer)
        ip.link("set", index=index, master=bridge, state="up")
        # With br_netfilter a container that calls its own published port is bridged back to where it came from.
        ip.brport("set", index=index, mode=1)  # IFLA_BRPORT_MODE, "hairpin"
        if network.isolate:
            _isolate(ip, index)
    netns.inside(path, lambda: _configure(network, ipv4))


def isolate(namespaces: Iterable[str]) -> None:
    """Keep containers' ports of a bridge from each other, by the means that this host needs now."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    with _errors("isolate the containers of a network"), IPRoute() as ip:
        for namespace in namespaces:
            if (index := _index(host_interface(namespace))) is not None:
                _isolate(ip, index)


def remove_container(namespace: str) -> None:
    """Remove a container's veth pair and namespace; twice is the same as once."""
    remove_link(host_interface(namespace))
    netns.remove(namespace)


def host_interface(namespace: str) -> str:
    """Give the host's end of a namespace's veth pair: 15 characters at most, the same at every call."""
    return "cp" + hashlib.sha256(namespace.encode()).hexdigest()[:10]


def hardware_address(ipv4: IPv4Address) -> str:
    """Give a locally administered address made from the IPv4 one, as Docker does."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + ipv4.packed)


def _isolate(ip: Any, index: int) -> None:
    """Have the bridge keep a port from other isolated ones, except where that would be too much.

    Where br_netfilter hands frames to the IP hooks, a connection to a sibling's published port is bridged once it
    is translated (br_nf_pre_routing_finish), and the bridge would drop it. There the rules see every IP packet, and
    `guard` keeps containers apart.
    """
    hooked = all(sysctl.read(f"net/bridge/bridge-nf-call-{which}") == "1" for which in ("iptables", "ip6tables"))
    ip.brport("set", index=index, isolated=0 if hooked else 1)


def prepare_inside() -> None:
    """Set up what every container's namespace has, whoever gives it an address. Call it inside."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    with _errors("set up the loopback interface"), IPRoute() as ip:
        _prepare(ip)


def _prepare(ip: Any) -> None:
    # As in Docker since 20.10: a program without privileges may serve port 80 of its own namespace.
    try:
        Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0", "ascii")
    except OSError as error:
        log.warning("only root can serve ports below 1024 in this container: /proc/sys: %s", error.strerror)
    ip.link("set", index=socket.if_nametoindex("lo"), state="up")


def _configure(network: Network, ipv4: IPv4Address) -> None:
    from pyroute2 import IPRoute  # noqa: PLC0415

    with _errors("set up addresses and routes"), IPRoute() as ip:
        _prepare(ip)
        index = socket.if_nametoindex(CONTAINER_INTERFACE)
        _add_address(ip, index, ipv4, network.ipv4.prefixlen)
        ipv6 = network.ipv6_of(ipv4)
        if network.ipv6 and ipv6 and _takes_ipv6(CONTAINER_INTERFACE):
            _add_address(ip, index, ipv6, network.ipv6.prefixlen)
        ip.link("set", index=index, state="up")
        if network.internal:
            return
        with _passing_over(errno.EEXIST):
            ip.route("add", dst="0.0.0.0/0", gateway=str(network.gateway4))
        if network.gateway6 and _takes_ipv6(CONTAINER_INTERFACE):
            with _passing_over(errno.EEXIST):
                ip.route("add", dst="::/0", gateway=str(network.gateway6))


def _is_complete(network: Network) -> bool:
    """Whether a bridge is up with all its addresses: a route to its subnet goes by it only then."""
    here = proc.read()
    reached = {route.network for route in here.routes if route.interface == network.bridge and not route.gateway}
    return all(subnet in reached and gateway in here.addresses for gateway, subnet in _gateways(network))


def _gateways(network: Network) -> Iterator[tuple[IPv4Address | IPv6Address, IPv4Network | IPv6Network]]:
    """Give the addresses that a bridge has, each with its subnet; of IPv6 only where the bridge may have it."""
    yield network.gateway4, network.ipv4
    if network.ipv6 and network.gateway6 and _takes_ipv6(network.bridge):
        yield network.gateway6, network.ipv6


def _index(name: str) -> int | None:
    """Give an interface's index in the namespace of this thread, None where there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _mtu(name: str) -> int:
    """Give an interface's MTU (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        answer = fcntl.ioctl(asked, SIOCGIFMTU, struct.pack("16s16x", name.encode()))
    return int.from_bytes(answer[16:20], sys.byteorder)


def _add_address(ip: Any, index: int, address: IPv4Address | IPv6Address, prefix: int) -> None:
    flags = {"flags": NODAD} if address.version == 6 else {}  # noqa: PLR2004 - an IP version
    with _passing_over(errno.EEXIST):
        ip.addr("add", index=index, address=str(address), prefixlen=prefix, **flags)


def _takes_ipv6(interface: str) -> bool:
    """Whether an interface of this namespace may have IPv6 addresses: an operator can forbid it at any time."""
    try:
        return Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").read_text("ascii").strip() == "0"
    except OSError:
        return False


def _refuse_advertisements(bridge: str) -> None:
    """Keep containers from giving this host routes by router advertisements (CVE-2020-13401)."""
    with contextlib.suppress(OSError):  # no IPv6; or read-only, which the next pass tells of (host/needs)
        Path(f"/proc/sys/net/ipv6/conf/{bridge}/accept_ra").write_text("0", "ascii")


def _uplink_mtu(ip: Any) -> int:
    """Give the MTU of the default route's link: larger packets from containers would not fit."""
    for route in ip.get_default_routes():
        index = route.get_attr("RTA_OIF")
        if index:
            return int(ip.get_links(index)[0].get_attr("IFLA_MTU") or DEFAULT_MTU)
    return DEFAULT_MTU


class _passing_over:  # noqa: N801 - reads as a phrase
    """Pass over one error of netlink's: the state that was wanted is there already."""

    def __init__(self, code: int) -> None:
        self._code = code

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return getattr(error, "code", None) == self._code


class _errors:  # noqa: N801 - reads as a phrase
    """Turn netlink's errors into ours, with what was tried."""

    def __init__(self, tried: str) -> None:
        self._tried = tried

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

        if isinstance(error, NetlinkError | OSError):
            code = getattr(error, "code", None) or getattr(error, "errno", None) or 0
            message = f"could not {self._tried}: {os.strerror(code)}"
            if code in (errno.EPERM, errno.EACCES):
                raise HostError(message, hint="run as root (CAP_NET_ADMIN, CAP_SYS_ADMIN)") from error
            raise KernelError(message) from error
