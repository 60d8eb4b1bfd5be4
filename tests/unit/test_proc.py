"""What /proc says of a namespace and of a host's sockets, from captured text."""

from __future__ import annotations

import os
import subprocess
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import pytest

from ctrport.host import facts
from ctrport.network import proc
from ctrport.network.proc import NetworkNamespace, Route

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     +-- 198.51.100.0/24 2 0 2
        |-- 198.51.100.0
           /24 link UNICAST
        |-- 198.51.100.7
           /32 host LOCAL
        |-- 198.51.100.255
           /32 link BROADCAST
Local:
  +-- 198.51.100.0/24 2 0 2
        |-- 198.51.100.7
           /32 host LOCAL
        |-- 198.51.100.9
           /32 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
20010db8000a00000000000000000007 02 40 00 82     eth0
20010db8000a00000000000000000008 02 40 00 c2     eth0
20010db8000a00000000000000000009 02 40 00 a2     eth0
20010db8000a0000abcdabcdabcdabcd 02 40 00 81     eth0
fe8000000000000000426433640007ff 02 40 20 80     eth0
fd000000000000000000000000000001 02 40 00 80     eth1
"""
ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t016433C6\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth1\t00000000\t017100CB\t0003\t0\t0\t50\t00000000\t0\t0\t0
eth0\t006433C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t007100CB\t00000000\t0001\t0\t0\t0\t80FFFFFF\t0\t0\t0
*\t0000000A\t00000000\t0201\t0\t0\t0\t000000FF\t0\t0\t0
eth2\t000010AC\t00000000\t0000\t0\t0\t0\t0000F0FF\t0\t0\t0
"""
ZERO = "0" * 32
IPV6_ROUTE = f"""\
20010db8000a00000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
fe800000000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
{ZERO} 00 {ZERO} 00 20010db8000a00000000000000000001 00000400 00000001 00000000 00000003     eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
ff000000000000000000000000000000 08 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
20010db8000a00000000000000000007 80 {ZERO} 00 {ZERO} 00000000 00000001 00000000 80200001       lo
20010db8dead00000000000000000000 30 {ZERO} 00 {ZERO} 00000400 00000001 00000000 00000201     eth0
"""


def route(network: str, interface: str, *, gateway: bool = False, metric: int = 0) -> Route:
    return Route(ip_network(network), interface, gateway, metric)


def test_ipv4_addresses():
    """Local addresses once each, in the order of the trie; loopback, networks and broadcasts are none."""
    assert proc.ipv4_addresses(FIB_TRIE) == [IPv4Address("198.51.100.7"), IPv4Address("198.51.100.9")]
    assert proc.ipv4_addresses("") == []


def test_ipv6_addresses():
    """Global addresses that can be used: not tentative, deprecated, temporary, link-local or loopback."""
    assert proc.ipv6_addresses(IF_INET6) == [IPv6Address("2001:db8:a::7"), IPv6Address("fd00::1")]
    assert proc.ipv6_addresses("") == []


def test_ipv4_routes():
    """Routes that are up, with prefix and metric; an unreachable one and one that is down are left out."""
    assert proc.ipv4_routes(ROUTE) == [
        route("0.0.0.0/0", "eth0", gateway=True, metric=100),
        route("0.0.0.0/0", "eth1", gateway=True, metric=50),
        route("198.51.100.0/24", "eth0"),
        route("203.0.113.0/25", "eth1"),
    ]


def test_ipv6_routes():
    """Without those of lo, of multicast, and those that reject."""
    assert proc.ipv6_routes(IPV6_ROUTE) == [
        route("2001:db8:a::/64", "eth0", metric=256),
        route("fe80::/64", "eth0", metric=256),
        route("::/0", "eth0", gateway=True, metric=1024),
    ]


def test_the_interface_towards_an_address():
    """The longest prefix wins, then the smaller metric; another family's routes do not count."""
    namespace = NetworkNamespace((), (*proc.ipv4_routes(ROUTE), *proc.ipv6_routes(IPV6_ROUTE)))
    towards = [namespace.interface_towards(ip_address(a)) for a in ("198.51.100.5", "192.0.2.1", "2001:db8::1")]
    assert towards == ["eth0", "eth1", "eth0"]
    assert NetworkNamespace((), (route("::/0", "eth0"),)).interface_towards(IPv4Address("192.0.2.1")) is None


def test_the_main_address_is_on_the_default_route_s_link():
    """Of several addresses the one that answers go out from, else the first; none is None."""
    addresses = tuple(map(ip_address, ("198.51.100.7", "203.0.113.9", "fd00::1")))
    routes = tuple(proc.ipv4_routes(ROUTE))
    assert NetworkNamespace(addresses, routes).ipv4 == IPv4Address("203.0.113.9")
    assert NetworkNamespace(addresses, ()).ipv4 == IPv4Address("198.51.100.7")
    assert NetworkNamespace(addresses, routes).ipv6 == IPv6Address("fd00::1")
    assert NetworkNamespace((), routes).ipv4 is None
    elsewhere = (route("0.0.0.0/0", "eth9", gateway=True),)
    assert NetworkNamespace(addresses, elsewhere).ipv4 == IPv4Address("198.51.100.7")


def test_a_process_that_is_gone():
    """Its namespace is not somebody else's."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(FileNotFoundError):
        proc.read(child)


def test_this_process():
    """The addresses of a real namespace are read without an error, loopback not among them."""
    found = proc.read()
    assert all(not address.is_loopback for address in found.addresses)
    assert all(isinstance(r.network, IPv4Network) or r.interface != "lo" for r in found.routes)


@pytest.mark.parametrize(
    ("text", "ports"),
    [("", []), ("8080", [8080]), ("8080,9148-9150", [8080, 9148, 9149, 9150])],
)
def test_reserved_ports(text: str, ports: list[int]):
    """Numbers and ranges, or nothing."""
    assert facts.reserved_ports(text) == frozenset(ports)


def test_the_moment_of_an_event():
    """A moment of the last seconds is found on the clock of processes' starts; one from elsewhere is not."""
    now = time.time_ns()
    at = proc.uptime_at(now - 10**9)
    assert at is not None
    assert 0.9 < proc.uptime() - at < 2
    assert [proc.uptime_at(now + shift * 10**9) for shift in (-60, 60)] == [None, None]


def test_when_a_process_was_started():
    """A process was started before now, and one that is gone was never."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        begun = proc.started(process.pid)
        assert begun is not None
        assert proc.uptime() - 10 < begun < proc.uptime() + 0.02
    finally:
        process.kill()
        process.wait()
    assert proc.started(process.pid) is None
