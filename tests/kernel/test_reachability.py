"""Who reaches whom: every row between two network namespaces, with the table that the program makes.

One lab serves the whole module: a host, a machine on its wire (`remote`), one behind it (`far`), two networks of
ours with containers (`c1` and `c2` on the first, `c3` on the second) and a pod on a bridge of somebody else's.
Each test publishes what it needs, which replaces the whole table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Literal

import pytest

from ctrport.firewall import ruleset
from ctrport.firewall.nft import LibNft
from ctrport.firewall.ruleset import Links
from ctrport.firewall.table import difference
from ctrport.host import needs
from ctrport.model import ports
from ctrport.model.bindings import State
from ctrport.model.ledger import Ledger
from ctrport.model.mark import DEFAULT_MARK
from ctrport.model.workload import Endpoint, Key, Workload
from ctrport.network import attach, links, netns
from ctrport.network.leases import Lease
from ctrport.network.networks import Network
from frames import forged
from lab import REFUSED, TIMEOUT, Answer, Failure, Lab, Netns, Protocol, Server, ask, connect, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ctrport.firewall.table import Table

Family = Literal[4, 6]

NETWORK_A = Network(
    name="a", bridge="ctrport0", ipv4=IPv4Network("198.51.100.0/25"), ipv6=IPv6Network("2001:db8:a::/64")
)
NETWORK_B = Network(
    name="b", bridge="ctrport1", ipv4=IPv4Network("198.51.100.128/25"), ipv6=IPv6Network("2001:db8:b::/64")
)
HOST: dict[int, str] = {4: "192.0.2.1", 6: "2001:db8::1"}
REMOTE: dict[int, str] = {4: "192.0.2.2", 6: "2001:db8::2"}
FAR: dict[int, str] = {4: "203.0.113.2", 6: "2001:db8:f::2"}
GATEWAY_A: dict[int, str] = {4: "198.51.100.1", 6: "2001:db8:a::1"}
GATEWAY_B: dict[int, str] = {4: "198.51.100.129", 6: "2001:db8:b::1"}
C1: dict[int, str] = {4: "198.51.100.2", 6: "2001:db8:a::2"}
C2: dict[int, str] = {4: "198.51.100.3", 6: "2001:db8:a::3"}
C3: dict[int, str] = {4: "198.51.100.130", 6: "2001:db8:b::2"}
POD: dict[int, str] = {4: "203.0.113.130", 6: "2001:db8:c::2"}
SECOND_ADDRESS = "192.0.2.10"  # of the host
SILENCE = 0.15  # seconds without an answer that are taken for a drop; an answer takes under a millisecond

WEB = "8080:80 8080:80/udp"


@dataclasses.dataclass(kw_only=True)
class Site:
    """The lab, what hangs on it, and how ports are published there."""

    lab: Lab
    state: Path
    far: Netns
    c1: Netns
    c2: Netns
    c3: Netns
    pod: Netns
    nft: LibNft
    links: Links
    servers: dict[tuple[str, int, Protocol, Family], Server] = dataclasses.field(default_factory=dict)

    @property
    def host(self) -> Netns:
        return self.lab.host

    @property
    def remote(self) -> Netns:
        return self.lab.remote

    def serve(self, ns: Netns, port: int, *protocols: Protocol, bind: str | None = None) -> None:
        """Have servers for both families, unless they run since an earlier test."""
        for proto in protocols or ("tcp", "udp"):
            for family in (4,) if bind else (4, 6):
                key = (ns.label, port, proto, family)
                if key not in self.servers:
                    self.servers[key] = serve(ns, port, proto, family, bind)

    def table(self, **specs: str) -> Table:
        """Give the table for the specs of containers, given out by the ledger; each must have been granted."""
        ledger = Ledger()
        addresses = {"c1": C1, "c2": C2, "c3": C3, "pod": POD}
        for number, (name, text) in enumerate(specs.items()):
            mappings, errors = ports.parse_list(text)
            assert not errors
            own4, own6 = ip_address(addresses[name][4]), ip_address(addresses[name][6])
            endpoint = Endpoint(ipv4=own4, ipv6=own6)  # type: ignore[arg-type]
            ledger.put(Workload(key=Key("test", name), created_at=number, requests=mappings, endpoint=endpoint))
        ledger.settle()
        bindings = [b for key in ledger.owners() for b in ledger.bindings(key)]
        assert [b for b in bindings if b.state is not State.ACTIVE] == []
        return ruleset.build(bindings, self.links)

    def publish(self, **specs: str) -> Table:
        """Replace the table by one that publishes these specs and nothing else."""
        table = self.table(**specs)
        self.nft.apply(table.rebuild())
        return table

    def without_loopback_chain(self, table: Table) -> None:
        """Apply a table that lacks the drop of foreign 127.0.0.0/8."""
        chains = tuple(chain for chain in table.chains if chain.name != "loopback")
        self.nft.apply(dataclasses.replace(table, chains=chains).rebuild())

    def without_asking_for_local_addresses(self, table: Table) -> None:
        """Apply a table that translates whatever has a published port, as if it were for this host."""
        to_all = table.rebuild().replace("fib daddr type local goto publish", "goto publish")
        self.nft.apply(to_all)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give the lab of this module: the product makes bridges, containers and settings; the lab makes the rest."""
    state = tmp_path_factory.mktemp("state")
    names: list[str] = []
    with Lab(forwarding=False) as lab, contextlib.ExitStack() as stack:
        host = lab.host

        def container(label: str, network: Network, ipv4: str) -> Netns:
            name = f"ctrport-test-{os.getpid()}-reach-{label}"
            names.append(name)
            stack.callback(netns.remove, name)
            lease = Lease(
                network=network.name,
                ipv4=network.ipv4[int(ip_address(ipv4)) - int(network.ipv4[0])],
                container=Key("test", label),
                netns=name,
                containerd="",
            )
            host.call(lambda: attach.connect(state, network, lease))
            return stack.enter_context(Netns.at(netns.DIRECTORY / name, label))

        c1 = container("c1", NETWORK_A, C1[4])
        c2 = container("c2", NETWORK_A, C2[4])
        c3 = container("c3", NETWORK_B, C3[4])
        far = lab.netns("far")
        host.add_veth(
            far,
            "eth1",
            "eth0",
            addresses=("203.0.113.1/25", "2001:db8:f::1/64"),
            peer_addresses=("203.0.113.2/25", "2001:db8:f::2/64"),
        )
        far.ip("route add default via 203.0.113.1", "route add default via 2001:db8:f::1")
        lab.bridge("cni0", "203.0.113.129/25", "2001:db8:c::1/64")
        pod = lab.container_like(
            "pod",
            "cni0",
            "203.0.113.130/25",
            "2001:db8:c::2/64",
            gateway4="203.0.113.129",
            gateway6="2001:db8:c::1",
        )
        host.call(lambda: needs.ensure(state, Links(endpoints=frozenset({"cni0"})), ipv6=True))
        for ns in (host, lab.remote, c1):  # a refusal must be told every time, not once a second
            ns.sysctl("net/ipv4/icmp_ratelimit", 0)
            ns.sysctl("net/ipv6/icmp/ratelimit", 0)
        site = Site(
            lab=lab,
            state=state,
            far=far,
            c1=c1,
            c2=c2,
            c3=c3,
            pod=pod,
            nft=host.call(LibNft),
            links=Links(bridges=frozenset({"ctrport0", "ctrport1"}), endpoints=frozenset({"cni0"})),
        )
        site.serve(c1, 80)
        yield site
        for server in site.servers.values():
            server.close()


@pytest.fixture
def site(made: Site) -> Site:
    """Give the lab without flows of an earlier test, and with bridged frames kept from the IP hooks."""
    made.host.run("conntrack", "-F", check=False)
    nf_call(made, 0)
    return made


def nf_call(site: Site, value: int) -> None:
    """Say whether bridged frames pass the IP hooks (br_netfilter)."""
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        assert site.host.sysctl(f"net/bridge/{name}", value) == str(value)


def seen(answer: Answer | Failure) -> tuple[str, str] | Failure:
    """Give who answered, and whom they saw."""
    return (answer.name, answer.peer[0]) if isinstance(answer, Answer) else answer


tcp_and_udp = pytest.mark.parametrize("proto", ["tcp", "udp"])
both_families = pytest.mark.parametrize("family", [4, 6])
bridged_or_not = pytest.mark.parametrize("bridge_nf", [0, 1])


# ------------------------------------------------------------------------------------- published, from outside


@tcp_and_udp
@both_families
def test_a_remote_client_is_answered_and_seen_as_itself(site: Site, proto: Protocol, family: Family):
    """A remote machine reaches the published port, and the container sees its address and port."""
    site.publish(c1=WEB)
    answer = ask(site.remote, HOST[family], 8080, proto, source_port=4100)
    assert answer == Answer("c1", (REMOTE[family], 4100), (C1[family], 80))


@tcp_and_udp
@both_families
def test_a_port_that_is_not_published_is_refused_by_the_host(site: Site, proto: Protocol, family: Family):
    """The container serves 81 as well; the host answers for 81 and 8081 itself, with a refusal at once."""
    site.serve(site.c1, 81)
    site.publish(c1=WEB)
    assert ask(site.remote, HOST[family], 8081, proto) is REFUSED
    assert ask(site.remote, HOST[family], 81, proto) is REFUSED


@tcp_and_udp
def test_a_protocol_that_is_not_published_is_refused(site: Site, proto: Protocol):
    """Publishing tcp leaves udp of the same number alone, and the other way round."""
    site.publish(c1=f"8080:80/{proto}")
    other: Protocol = "udp" if proto == "tcp" else "tcp"
    assert seen(ask(site.remote, HOST[4], 8080, proto)) == ("c1", REMOTE[4])
    assert ask(site.remote, HOST[4], 8080, other) is REFUSED


@tcp_and_udp
@both_families
def test_an_address_added_after_the_publish_is_served(site: Site, proto: Protocol, family: Family):
    """A wildcard publish means every address that the host has when the packet comes."""
    site.publish(c1=WEB)
    added = {4: "192.0.2.77", 6: "2001:db8::77"}[family]
    prefix = {4: 24, 6: 64}[family]
    site.host.ip(f"address add {added}/{prefix} dev eth0" + (" nodad" if family == 6 else ""))
    try:
        # The kernel joins the new address's solicitation group a moment later; a lost solicitation costs a second.
        assert seen(ask(site.remote, added, 8080, proto, timeout=3)) == ("c1", REMOTE[family])
    finally:
        site.host.ip(f"address delete {added}/{prefix} dev eth0")


def test_sctp_mappings_load_and_list_back(site: Site):
    """The kernel takes SCTP elements in every map."""
    table = site.publish(c1="8080:80/sctp 192.0.2.10:8081:80/sctp [2001:db8::1]:8082:80/sctp")
    assert site.nft.listing() == table.listing()
    assert [e.key for e in table.elements["published4"].values()] == ["sctp . 8080"]


# -------------------------------------------------------------------------------------- published, from the host


@tcp_and_udp
@pytest.mark.parametrize(
    ("address", "seen_as"),
    [
        ("127.0.0.1", GATEWAY_A[4]),
        ("127.8.8.8", GATEWAY_A[4]),
        (HOST[4], GATEWAY_A[4]),
        (SECOND_ADDRESS, GATEWAY_A[4]),
        (GATEWAY_A[4], GATEWAY_A[4]),
        (GATEWAY_B[4], GATEWAY_A[4]),
        (HOST[6], GATEWAY_A[6]),
        (GATEWAY_A[6], GATEWAY_A[6]),
        (GATEWAY_B[6], GATEWAY_A[6]),
    ],
)
def test_the_host_s_own_programs_are_answered(site: Site, proto: Protocol, address: str, seen_as: str):
    """The host reaches the port on loopback, on its own addresses and on bridge gateways, as the gateway."""
    site.publish(c1=WEB)
    assert seen(ask(site.host, address, 8080, proto)) == ("c1", seen_as)


@tcp_and_udp
def test_ipv6_loopback_is_refused_at_once(site: Site, proto: Protocol):
    """No packet from ::1 can leave the host: the port is refused there, and nobody waits."""
    site.publish(c1=WEB)
    assert ask(site.host, "::1", 8080, proto) is REFUSED


# --------------------------------------------------------------------------------- published, from containers


def test_bridged_frames_pass_the_ip_hooks_only_if_told_to(site: Site):
    """The setting of this namespace takes effect: without that the tests below would say one thing twice."""
    site.serve(site.c2, 80)
    site.publish()
    counted = []
    for value in (0, 1):
        nf_call(site, value)
        site.host.nft(
            "table ip probe { chain c { type filter hook forward priority -1; ip daddr 198.51.100.3 counter; }; }"
        )
        assert seen(ask(site.c1, C2[4], 80)) == ("c2", C1[4])
        counted.append("packets 0 " not in site.host.nft("list table ip probe"))
        site.host.nft("delete table ip probe")
    assert counted == [False, True]


@bridged_or_not
@tcp_and_udp
@both_families
@pytest.mark.parametrize("to", ["host", "gateway"])
def test_a_container_reaches_itself(site: Site, to: str, family: Family, proto: Protocol, bridge_nf: int):
    """A container that calls its own published port is answered, and sees the gateway as the client."""
    nf_call(site, bridge_nf)
    site.publish(c1=WEB)
    address = {"host": HOST, "gateway": GATEWAY_A}[to][family]
    assert seen(ask(site.c1, address, 8080, proto)) == ("c1", GATEWAY_A[family])


@bridged_or_not
@tcp_and_udp
@both_families
@pytest.mark.parametrize("to", ["host", "gateway"])
def test_a_container_reaches_a_sibling(site: Site, to: str, family: Family, proto: Protocol, bridge_nf: int):
    """A container of the same network is answered through the published port."""
    nf_call(site, bridge_nf)
    site.publish(c1=WEB)
    address = {"host": HOST, "gateway": GATEWAY_A}[to][family]
    assert seen(ask(site.c2, address, 8080, proto)) == ("c1", GATEWAY_A[family])


@bridged_or_not
@tcp_and_udp
@both_families
@pytest.mark.parametrize("to", ["host", "gateway", "other gateway"])
def test_a_container_of_another_network_is_answered_and_seen_as_itself(
    site: Site, to: str, family: Family, proto: Protocol, bridge_nf: int
):
    """A published port is open to other networks, by every address of the host, with the client's own address."""
    nf_call(site, bridge_nf)
    site.publish(c1=WEB)
    address = {"host": HOST, "gateway": GATEWAY_B, "other gateway": GATEWAY_A}[to][family]
    assert seen(ask(site.c3, address, 8080, proto)) == ("c1", C3[family])


# --------------------------------------------------------------------------------------------------- direct


@tcp_and_udp
@both_families
def test_a_remote_client_cannot_reach_a_container_directly(site: Site, proto: Protocol, family: Family):
    """A route to the containers is set and nobody else drops: we do, even for a port that is published."""
    site.publish(c1=WEB)
    assert ask(site.remote, C1[family], 80, proto, timeout=SILENCE) is TIMEOUT
    site.host.nft("delete table inet ctrport")
    assert seen(ask(site.remote, C1[family], 80, proto)) == ("c1", REMOTE[family])


@bridged_or_not
@tcp_and_udp
@both_families
def test_another_network_is_closed(site: Site, family: Family, proto: Protocol, bridge_nf: int):
    """Containers of two networks reach each other by published ports only; without us they would directly."""
    nf_call(site, bridge_nf)
    site.publish(c1=WEB)
    assert ask(site.c3, C1[family], 80, proto, timeout=SILENCE) is TIMEOUT
    site.host.nft("delete table inet ctrport")
    assert seen(ask(site.c3, C1[family], 80, proto)) == ("c1", C3[family])


@bridged_or_not
@tcp_and_udp
@both_families
def test_the_same_network_is_open(site: Site, family: Family, proto: Protocol, bridge_nf: int):
    """Containers of one network reach each other directly, as themselves, published or not."""
    nf_call(site, bridge_nf)
    site.serve(site.c1, 81)
    site.publish(c1=WEB)
    assert seen(ask(site.c2, C1[family], 80, proto)) == ("c1", C2[family])
    assert seen(ask(site.c2, C1[family], 81, proto)) == ("c1", C2[family])


@tcp_and_udp
@both_families
def test_the_host_reaches_a_container_directly(site: Site, proto: Protocol, family: Family):
    """The host's own programs are no outsiders: health checks use the container's address."""
    site.publish(c1=WEB)
    assert seen(ask(site.host, C1[family], 80, proto)) == ("c1", GATEWAY_A[family])


@tcp_and_udp
@both_families
def test_containers_talk_to_the_outside_as_the_host(site: Site, proto: Protocol, family: Family):
    """Other machines see the host's address, of the interface that the packet leaves by."""
    site.serve(site.remote, 9090)
    site.serve(site.far, 9090)
    site.publish(c1=WEB)
    assert seen(ask(site.c1, REMOTE[family], 9090, proto)) == ("remote", HOST[family])
    assert seen(ask(site.c1, FAR[family], 9090, proto)) == ("far", {4: "203.0.113.1", 6: "2001:db8:f::1"}[family])


# --------------------------------------------------------------------------------------- one address, loopback


@tcp_and_udp
def test_a_publish_on_one_address_is_there_only(site: Site, proto: Protocol):
    """Every other address of the host refuses, from outside, from the host, and from containers."""
    site.publish(c1=f"{SECOND_ADDRESS}:8080:80/{proto}")
    assert seen(ask(site.remote, SECOND_ADDRESS, 8080, proto)) == ("c1", REMOTE[4])
    assert seen(ask(site.host, SECOND_ADDRESS, 8080, proto)) == ("c1", GATEWAY_A[4])
    assert seen(ask(site.c3, SECOND_ADDRESS, 8080, proto)) == ("c1", C3[4])
    assert ask(site.remote, HOST[4], 8080, proto) is REFUSED
    assert ask(site.remote, HOST[6], 8080, proto) is REFUSED
    assert ask(site.host, "127.0.0.1", 8080, proto) is REFUSED
    assert ask(site.host, HOST[4], 8080, proto) is REFUSED
    assert ask(site.c1, GATEWAY_A[4], 8080, proto) is REFUSED


@tcp_and_udp
def test_a_publish_on_one_ipv6_address_is_there_only(site: Site, proto: Protocol):
    """The host's IPv4 addresses and its other IPv6 addresses refuse."""
    site.publish(c1=f"[{HOST[6]}]:8080:80/{proto}")
    assert seen(ask(site.remote, HOST[6], 8080, proto)) == ("c1", REMOTE[6])
    assert ask(site.remote, HOST[4], 8080, proto) is REFUSED
    assert ask(site.host, GATEWAY_A[6], 8080, proto) is REFUSED


@tcp_and_udp
def test_two_addresses_have_two_containers(site: Site, proto: Protocol):
    """One port on two host addresses leads to two containers."""
    site.serve(site.c2, 80)
    site.publish(c1=f"{HOST[4]}:8080:80/{proto}", c2=f"{SECOND_ADDRESS}:8080:80/{proto}")
    assert seen(ask(site.remote, HOST[4], 8080, proto)) == ("c1", REMOTE[4])
    assert seen(ask(site.remote, SECOND_ADDRESS, 8080, proto)) == ("c2", REMOTE[4])


@tcp_and_udp
def test_the_unspecified_addresses_mean_one_family(site: Site, proto: Protocol):
    """0.0.0.0 is IPv4 only, [::] IPv6 only, and both together may lead to two containers."""
    site.serve(site.c2, 80)
    site.publish(c1=f"0.0.0.0:8080:80/{proto}", c2=f"[::]:8080:80/{proto}")
    assert seen(ask(site.remote, HOST[4], 8080, proto)) == ("c1", REMOTE[4])
    assert seen(ask(site.remote, HOST[6], 8080, proto)) == ("c2", REMOTE[6])
    site.publish(c1=f"0.0.0.0:8080:80/{proto}")
    assert ask(site.remote, HOST[6], 8080, proto) is REFUSED


@tcp_and_udp
def test_a_publish_on_loopback_is_for_the_host_alone(site: Site, proto: Protocol):
    """127.0.0.1 answers the host's programs; everybody else is refused on every address."""
    site.publish(c1=f"127.0.0.1:8080:80/{proto}")
    assert seen(ask(site.host, "127.0.0.1", 8080, proto)) == ("c1", GATEWAY_A[4])
    for client in (site.host, site.remote, site.c1, site.c2, site.c3):
        assert ask(client, HOST[4], 8080, proto) is REFUSED
    assert ask(site.host, "127.0.0.2", 8080, proto) is REFUSED


def answered(proto: Protocol) -> tuple[str, str]:
    """Give how a forged frame to 127.0.0.1 is answered where nobody drops it."""
    return "127.0.0.1", {"tcp": "SYN-ACK", "udp": "datagram"}[proto]


@tcp_and_udp
def test_a_neighbour_s_frame_to_loopback_is_dropped(site: Site, proto: Protocol):
    """A frame to the host's hardware address and 127.0.0.1:8080 gets no answer; without our drop it gets one."""
    table = site.publish(c1=f"127.0.0.1:8080:80/{proto}")

    def frame() -> tuple[str, str] | None:
        return forged(site.remote, (site.host, "eth0"), REMOTE[4], "127.0.0.1", 8080, proto=proto, within=SILENCE)

    assert frame() is None
    site.without_loopback_chain(table)
    assert frame() == answered(proto)


@tcp_and_udp
def test_a_container_cannot_reach_the_host_s_loopback_services(site: Site, proto: Protocol):
    """route_localnet on the bridge opens no service on 127.0.0.1 to containers; without our drop it would."""
    site.serve(site.host, 9000, proto, bind="127.0.0.1")
    table = site.publish(c1=f"127.0.0.1:8080:80/{proto}")

    def frame(port: int) -> tuple[str, str] | None:
        towards = (site.host, "ctrport0")
        return forged(site.c1, towards, C1[4], "127.0.0.1", port, proto=proto, within=SILENCE)

    assert seen(ask(site.host, "127.0.0.1", 9000, proto)) == ("host", "127.0.0.1")
    assert site.host.sysctl("net/ipv4/conf/ctrport0/route_localnet") == "1"
    assert frame(9000) is None
    assert frame(8080) is None
    site.without_loopback_chain(table)
    assert frame(9000) == answered(proto)


def test_a_forged_source_on_loopback_reaches_no_container(site: Site):
    """A neighbour that claims to be 127.0.0.1 is not taken for a program of the host."""
    site.publish(c1=WEB)
    assert forged(site.remote, (site.host, "eth0"), "127.0.0.1", HOST[4], 8080, within=SILENCE) is None
    assert "src=127.0.0.1" not in site.host.run("conntrack", "-L").stdout


# -------------------------------------------------------------------------------------------- somebody else's


@tcp_and_udp
@both_families
def test_traffic_that_passes_through_is_left_alone(site: Site, proto: Protocol, family: Family):
    """What the host only routes to another machine's :8080 goes there, both ways; without `fib` it would not."""
    site.serve(site.far, 8080)
    site.serve(site.remote, 8080)
    table = site.publish(c1=WEB)
    assert seen(ask(site.remote, FAR[family], 8080, proto)) == ("far", REMOTE[family])
    assert seen(ask(site.far, REMOTE[family], 8080, proto)) == ("remote", FAR[family])
    site.without_asking_for_local_addresses(table)
    assert seen(ask(site.remote, FAR[family], 8080, proto)) == ("c1", REMOTE[family])
    assert seen(ask(site.far, REMOTE[family], 8080, proto)) == ("c1", FAR[family])


@tcp_and_udp
@both_families
def test_a_container_reaches_the_same_port_elsewhere(site: Site, proto: Protocol, family: Family):
    """A port that a container publishes can be called on other machines; without `fib` it could not."""
    site.serve(site.remote, 8080)
    table = site.publish(c1=WEB)
    assert seen(ask(site.c1, REMOTE[family], 8080, proto)) == ("remote", HOST[family])
    assert seen(ask(site.c3, REMOTE[family], 8080, proto)) == ("remote", HOST[family])
    assert seen(ask(site.host, REMOTE[family], 8080, proto)) == ("remote", HOST[family])
    site.without_asking_for_local_addresses(table)
    assert seen(ask(site.c3, REMOTE[family], 8080, proto)) == ("c1", C3[family])


@tcp_and_udp
@both_families
def test_somebody_else_s_network_gets_the_publish_and_no_drop(site: Site, proto: Protocol, family: Family):
    """A pod on another's bridge is published; what was open to it stays open, and nothing is masqueraded."""
    site.serve(site.pod, 80)
    site.serve(site.remote, 9090)
    site.publish(pod="8085:80 8085:80/udp")
    gateway = {4: "203.0.113.129", 6: "2001:db8:c::1"}[family]
    assert seen(ask(site.remote, HOST[family], 8085, proto)) == ("pod", REMOTE[family])
    assert seen(ask(site.host, HOST[family], 8085, proto)) == ("pod", gateway)
    assert seen(ask(site.pod, HOST[family], 8085, proto)) == ("pod", gateway)
    assert seen(ask(site.remote, POD[family], 80, proto)) == ("pod", REMOTE[family])
    assert seen(ask(site.pod, REMOTE[family], 9090, proto)) == ("remote", POD[family])


def test_somebody_else_s_pod_is_reached_on_loopback(site: Site):
    """The host's 127.0.0.1 leads to a pod's port too."""
    site.serve(site.pod, 80)
    site.publish(pod="8085:80")
    assert seen(ask(site.host, "127.0.0.1", 8085)) == ("pod", "203.0.113.129")


@bridged_or_not
@tcp_and_udp
def test_somebody_else_s_pod_reaches_itself_where_its_bridge_port_may_turn_packets_back(
    site: Site, proto: Protocol, bridge_nf: int
):
    """With br_netfilter this needs the hairpin mode of the pod's port, which is its own network's to set."""
    nf_call(site, bridge_nf)
    site.serve(site.pod, 80)
    site.publish(pod="8085:80 8085:80/udp")
    shown = site.host.run("ip", "-o", "link", "show", "master", "cni0").stdout
    site.host.ip(f"link set {shown.split(':')[1].split('@')[0].strip()} type bridge_slave hairpin on")
    assert seen(ask(site.pod, HOST[4], 8085, proto)) == ("pod", "203.0.113.129")


# ------------------------------------------------------------------------------------------- two networks, time


@tcp_and_udp
@both_families
def test_a_container_on_two_networks_is_reached_by_its_default_route(site: Site, proto: Protocol, family: Family):
    """A second interface takes nothing away: remote, host and the first network are answered."""
    name = "ctrport0b"
    site.host.add_veth(site.c1, name, "eth1", peer_addresses=("198.51.100.140/25", "2001:db8:b::140/64"))
    site.host.ip(f"link set {name} master {NETWORK_B.bridge}")
    try:
        site.publish(c1=WEB)
        assert seen(ask(site.remote, HOST[family], 8080, proto)) == ("c1", REMOTE[family])
        assert seen(ask(site.host, HOST[family], 8080, proto)) == ("c1", GATEWAY_A[family])
        assert seen(ask(site.c2, HOST[family], 8080, proto)) == ("c1", GATEWAY_A[family])
    finally:
        site.host.ip(f"link delete {name}")


@both_families
def test_a_connection_outlives_changes_and_rebuilds(site: Site, family: Family):
    """Other mappings come and go, the table is replaced, and an open connection does not notice."""
    table = site.publish(c1=WEB)
    with connect(site.remote, HOST[family], 8080) as connection:
        for number in range(10):
            more = site.table(c1=WEB, c2=f"{9000 + number}:80")
            site.nft.apply(difference(table.elements, more.elements, table.address).render())
            assert connection.echo(b"changed") == b"changed"
            table = more
            site.nft.apply(table.rebuild())
            assert connection.echo(b"rebuilt") == b"rebuilt"
        assert connection.ask().peer == connection.local


@both_families
def test_a_connection_outlives_its_own_mapping(site: Site, family: Family):
    """Taking a port back refuses new clients at once; an open connection ends with its container, not before."""
    site.publish(c1=WEB)
    with connect(site.remote, HOST[family], 8080) as connection:
        assert connection.echo(b"before") == b"before"
        site.publish()
        assert ask(site.remote, HOST[family], 8080) is REFUSED
        assert connection.echo(b"after") == b"after"


def test_an_idle_connection_outlives_a_foreign_flush(site: Site):
    """Our table is deleted and comes back: a connection that was silent meanwhile goes on."""
    table = site.publish(c1=WEB)
    with connect(site.remote, HOST[4], 8080) as connection:
        assert connection.echo(b"before") == b"before"
        site.host.nft("flush ruleset")
        site.nft.apply(table.rebuild())
        assert connection.echo(b"after") == b"after"


def test_every_element_counts_its_connections(site: Site):
    """A mapping's counter counts the first packet of each connection."""
    site.publish(c1=WEB)
    for _ in range(3):
        ask(site.remote, HOST[4], 8080)
    shown = site.host.nft("list map inet ctrport published4")
    assert 'tcp . 8080 counter packets 3 bytes 180 comment "test/c1" : 198.51.100.2 . 80' in shown


def test_only_what_we_translated_has_our_mark(site: Site):
    """The conntrack mark tells our connections from all others, for other people's rules."""
    site.serve(site.host, 7000, "tcp")
    site.publish(c1=WEB)
    with connect(site.remote, HOST[4], 8080) as ours, connect(site.remote, HOST[4], 7000) as other:
        ours.ask()
        other.ask()
        listed = site.host.run("conntrack", "-L", "-p", "tcp").stdout
    marks = {
        word.partition("=")[2]: f" mark={DEFAULT_MARK} " in line
        for line in listed.splitlines()
        for word in [next(w for w in line.split() if w.startswith("dport="))]
    }
    assert marks == {"8080": True, "7000": False}


@both_families
def test_a_firewall_that_drops_by_default_can_let_our_mark_pass(site: Site, family: Family):
    """The rule in docs/ruleset.md: in somebody else's forward chain the mark is enough, both ways."""
    site.publish(c1=WEB)
    drop = "table inet other { chain c { type filter hook forward priority 10; policy drop; }; }"
    site.host.nft(drop)
    try:
        assert ask(site.remote, HOST[family], 8080, timeout=SILENCE) is TIMEOUT
        site.host.nft("add rule inet other c ct mark and 0x10000 == 0x10000 accept")
        assert seen(ask(site.remote, HOST[family], 8080)) == ("c1", REMOTE[family])
    finally:
        site.host.nft("delete table inet other")


def test_one_client_alone_may_be_let_in(site: Site):
    """The rule in docs/ruleset.md: a drop in a table of one's own, by published port and client."""
    site.publish(c1="8080:80 8081:80")
    site.host.nft("table inet other { chain c { type filter hook forward priority 0; policy accept; }; }")
    rule = (
        "ct mark and 0x10000 == 0x10000 meta l4proto tcp ct original proto-dst 8080 "
        "ct original ip saddr != 203.0.113.2 drop"
    )
    site.host.nft(f"add rule inet other c {rule}")
    try:
        assert seen(ask(site.far, HOST[4], 8080)) == ("c1", FAR[4])
        assert ask(site.remote, HOST[4], 8080, timeout=SILENCE) is TIMEOUT
        assert seen(ask(site.remote, HOST[4], 8081)) == ("c1", REMOTE[4])
    finally:
        site.host.nft("delete table inet other")


def test_the_interface_towards_a_container_is_made_from_its_namespace(site: Site):
    """The host's end of the pair can be found from the namespace's name, and is on the network's bridge."""
    outer = links.host_interface(site.c1.name)
    shown = site.host.run("ip", "-o", "link", "show", "master", NETWORK_A.bridge).stdout
    assert outer in shown
