"""What `ctrport network create` takes, chooses and refuses."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrport.errors import ConflictError, CtrportError, HostError, InputError
from ctrport.network import define
from ctrport.network.define import bridge_name
from ctrport.network.networks import Network
from ctrport.network.proc import NetworkNamespace, Route

DEFAULT = Network(
    name="default", bridge="ctrport0", ipv4=IPv4Network("10.208.0.0/20"), ipv6=IPv6Network("fd00:1::/64")
)
HERE = NetworkNamespace(
    addresses=(IPv4Address("203.0.113.7"), IPv6Address("2001:db8:1::7")),
    routes=(
        Route(IPv4Network("0.0.0.0/0"), "eth0", gateway=True, metric=0),
        Route(IPv4Network("10.7.0.0/16"), "wg0", gateway=False, metric=0),
        Route(IPv6Network("::/0"), "eth0", gateway=True, metric=0),
        Route(IPv6Network("fd00:7::/48"), "wg0", gateway=False, metric=0),
    ),
)


def make(name: str = "back", *, ipv6_here: bool = True, interfaces: tuple[str, ...] = (), **words: Any) -> Network:
    wish = define.read(name=name, **words)
    return define.choose(wish, others=[DEFAULT], here=HERE, interfaces=interfaces, ipv6=ipv6_here)


def test_without_options():
    """A free subnet, the first address for the gateway, IPv6 as the host can, the name in the bridge's."""
    made = make()
    assert (made.name, made.bridge, str(made.ipv4), made.gateway4) == (
        "back",
        "cp-back",
        "10.208.16.0/20",
        IPv4Address("10.208.16.1"),
    )
    assert made.ipv6 is not None
    assert made.ipv6.subnet_of(IPv6Network("fd00::/8"))
    assert (made.mtu, made.internal, made.isolate) == (None, False, False)
    assert make(ipv6_here=False).ipv6 is None


def test_with_every_option():
    """What is asked for is taken as it is; the IPv6 gateway has the number of the other."""
    made = make(
        subnet="10.1.0.0/24",
        gateway="10.1.0.254",
        ipv6_subnet="fd00:2::/64",
        mtu=1400,
        internal=True,
        isolate=True,
    )
    assert made == Network(
        name="back",
        bridge="cp-back",
        ipv4=IPv4Network("10.1.0.0/24"),
        ipv6=IPv6Network("fd00:2::/64"),
        gateway=IPv4Address("10.1.0.254"),
        mtu=1400,
        internal=True,
        isolate=True,
    )
    assert made.gateway6 == IPv6Address("fd00:2::fe")
    assert make(ipv6=False).ipv6 is None
    assert make(mtu=1000).ipv6 is None  # IPv6 was not asked for, and does not work with it


@pytest.mark.parametrize(
    ("words", "kind", "said", "mend"),
    [
        ({"name": "a b"}, InputError, "the network name 'a b'", "letters and digits"),
        ({"name": "../x"}, InputError, "the network name '../x'", "letters and digits"),
        ({"name": "host"}, InputError, "cannot be named 'host'", ""),
        ({"name": "cni"}, InputError, "cannot be named 'cni'", ""),
        ({"name": "default"}, ConflictError, "a network named default exists already", "network inspect default"),
        ({"subnet": "10.1.0.0"}, InputError, "--subnet 10.1.0.0/32 is too small", "from /8 to /30"),
        ({"subnet": "10.1.0.0/31"}, InputError, "is too small", "from /8 to /30"),
        ({"subnet": "10.0.0.0/7"}, InputError, "--subnet 10.0.0.0/7 is too large", "from /8 to /30"),
        ({"subnet": "10.1.0.5/24"}, InputError, "--subnet 10.1.0.5/24 is an address", "--subnet 10.1.0.0/24"),
        ({"subnet": "ten"}, InputError, "--subnet 'ten' is not ADDRESS/LENGTH", "10.1.0.0/24"),
        ({"subnet": "fd00::/64"}, InputError, "is not an IPv4 subnet", "--ipv6-subnet fd00::/64"),
        ({"subnet": "127.0.0.0/16"}, InputError, "127.0.0.0/16 is not for use", ""),
        ({"subnet": "224.0.0.0/16"}, InputError, "224.0.0.0/16 is not for use", ""),
        ({"subnet": "10.7.3.0/24"}, ConflictError, "host's route to 10.7.0.0/16 on wg0", "another --subnet"),
        ({"subnet": "10.0.0.0/8"}, ConflictError, "overlaps network default (10.208.0.0/20)", "another --subnet"),
        ({"subnet": "203.0.113.0/28"}, ConflictError, "host's own address 203.0.113.7 in it", "another"),
        ({"gateway": "10.1.0.1"}, InputError, "--gateway needs --subnet", ""),
        ({"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}, InputError, "--gateway 10.2.0.1 is not", "10.1.0.1"),
        ({"subnet": "10.1.0.0/24", "gateway": "10.1.0.0"}, InputError, "--gateway 10.1.0.0 is not", "10.1.0.1"),
        ({"subnet": "10.1.0.0/24", "gateway": "10.1.0.255"}, InputError, "--gateway 10.1.0.255", "10.1.0.1"),
        ({"subnet": "10.1.0.0/24", "gateway": "x"}, InputError, "--gateway 'x' is not an IPv4 address", ""),
        ({"subnet": "10.1.0.0/24", "gateway": "fd00::1"}, InputError, "--gateway 'fd00::1'", "same number"),
        ({"ipv6_subnet": "fd00:2::/64", "ipv6": False}, InputError, "contradict each other", ""),
        ({"ipv6_subnet": "10.1.0.0/24"}, InputError, "is not an IPv6 subnet", "--subnet 10.1.0.0/24"),
        ({"ipv6_subnet": "fd00:2::/125"}, InputError, "--ipv6-subnet fd00:2::/125 is too small", ""),
        ({"ipv6_subnet": "fd00:2::/120"}, InputError, "has fewer addresses than 10.208.16.0/20", "/64"),
        ({"ipv6_subnet": "fd00:7:0:1::/64"}, ConflictError, "route to fd00:7::/48 on wg0", "another --ipv6-subnet"),
        ({"ipv6_subnet": "fe80::/64"}, InputError, "is not for use", ""),
        ({"mtu": 67}, InputError, "--mtu 67 is not from 68 to 65535", ""),
        ({"mtu": 65536}, InputError, "--mtu 65536", ""),
        ({"mtu": 1279, "ipv6": True}, InputError, "--mtu 1279: IPv6 needs 1280", "--no-ipv6"),
        ({"ipv6": True, "ipv6_here": False}, HostError, "--ipv6: new interfaces", "disable_ipv6"),
    ],
)
def test_what_is_refused(words: dict[str, Any], kind: type[CtrportError], said: str, mend: str):
    """The error names the input and what mends it."""
    with pytest.raises(kind) as caught:
        make(**words)
    assert said in caught.value.message
    assert mend in (caught.value.hint or "")


@given(
    name=st.from_regex(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", fullmatch=True).filter(lambda n: len(n) <= 76),
    taken=st.integers(0, 3),
)
def test_a_bridge_s_name(name: str, taken: int):
    """Whatever the network is called: an interface's name, the same each time, and one that nobody has."""
    there: list[str] = []
    for _ in range(taken):
        there.append(bridge_name(name, there))
        if name == "default":
            return
    made = bridge_name(name, there)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,15}", made)
    assert made not in there
    assert bridge_name(name, there) == made


def test_bridges_of_names_that_begin_alike():
    """Long names are cut and told apart."""
    names = ["customer-backend-1", "customer-backend-2", "customer.backend", "customer"]
    bridges = [bridge_name(name, ()) for name in names]
    assert len(set(bridges)) == 4
    assert bridges[-1] == "cp-customer"


@given(subnet=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)))
def test_no_subnet_is_taken_that_overlaps(subnet: tuple[int, int]):
    """Any subnet is either refused with one of our errors or free on this host."""
    text = str(ip_network(subnet, strict=False))
    try:
        made = make(subnet=text, ipv6=False)
    except CtrportError as error:
        assert text in error.message  # noqa: PT017 - one of two outcomes
        return
    assert made.ipv4 == ip_network(text)
    assert not any(made.ipv4.overlaps(n) for n in (DEFAULT.ipv4, IPv4Network("10.7.0.0/16")))
    assert ip_address("203.0.113.7") not in made.ipv4
