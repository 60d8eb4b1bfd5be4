"""Networks with options, by packets: isolated, internal, of another size; and how they are made and removed.

One lab serves the packets: `c1` and `c2` on a plain network, `s1` and `s2` on an isolated one, `i1` and `i2` on an
internal one. The other tests have a host each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ctrport.config import Settings
from ctrport.errors import ConflictError, KernelError, NotFoundError
from ctrport.firewall import ruleset
from ctrport.firewall.nft import LibNft
from ctrport.firewall.ruleset import Links
from ctrport.model import ports
from ctrport.model.ledger import Ledger
from ctrport.model.workload import Endpoint, Key, Workload
from ctrport.network import administer, attach, define, leases, links, netns, networks
from ctrport.network.leases import Lease
from ctrport.network.networks import Network
from lab import REFUSED, TIMEOUT, UNREACHABLE, Answer, Failure, Lab, Netns, ask, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Family = Literal[4, 6]

PLAIN = Network(name="p", bridge="cp-p", ipv4=IPv4Network("198.51.100.0/26"), ipv6=IPv6Network("2001:db8:a::/64"))
APART = Network(
    name="s",
    bridge="cp-s",
    ipv4=IPv4Network("198.51.100.64/26"),
    ipv6=IPv6Network("2001:db8:b::/64"),
    isolate=True,
)
INSIDE = Network(
    name="i",
    bridge="cp-i",
    ipv4=IPv4Network("198.51.100.128/26"),
    ipv6=IPv6Network("2001:db8:c::/64"),
    internal=True,
)
LINKS = Links(
    bridges=frozenset({"cp-p", "cp-s", "cp-i"}), internal=frozenset({"cp-i"}), isolated=frozenset({"cp-s"})
)
HOST: dict[int, str] = {4: "192.0.2.1", 6: "2001:db8::1"}
REMOTE: dict[int, str] = {4: "192.0.2.2", 6: "2001:db8::2"}
PORTS = {"c1": 8080, "s1": 8081, "i1": 8082}  # published, all to port 80
SILENCE = 0.2  # seconds without an answer that are taken for a drop
DEAD = (TIMEOUT, UNREACHABLE)

both_families = pytest.mark.parametrize("family", [4, 6])
bridged_or_not = pytest.mark.parametrize("bridge_nf", [0, 1])


class Site:
    """The lab with its containers; every one serves port 80 in both families."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack, state: Path) -> None:
        self.lab = lab
        self.nft = lab.host.call(LibNft)
        self.ns: dict[str, Netns] = {"host": lab.host, "remote": lab.remote}
        self.addresses: dict[str, dict[int, str]] = {"host": HOST, "remote": REMOTE}
        self.names: dict[str, str] = {}
        for network, labels in ((PLAIN, ("c1", "c2")), (APART, ("s1", "s2")), (INSIDE, ("i1", "i2"))):
            self.addresses[network.bridge] = {4: str(network.gateway4), 6: str(network.gateway6)}
            for number, label in enumerate(labels, 2):
                name = f"ctrport-test-{os.getpid()}-nets-{label}"
                stack.callback(netns.remove, name)
                ipv4 = network.ipv4[number]
                lease = Lease(
                    network=network.name, ipv4=ipv4, container=Key("test", label), netns=name, containerd=""
                )
                lab.host.call(lambda network=network, lease=lease: attach.connect(state, network, lease))
                inside = stack.enter_context(Netns.at(netns.DIRECTORY / name, label))
                self.ns[label], self.names[label] = inside, name
                self.addresses[label] = {4: str(ipv4), 6: str(network.ipv6_of(ipv4))}
        for label in ("remote", "c1", "c2", "s1", "s2", "i1", "i2"):
            for family in (4, 6):
                stack.enter_context(serve(self.ns[label], 80, family=family, name=label))

    def publish(self, found: Links = LINKS) -> None:
        """Write the table: a port of one container of each network, as if the internal one's were let through."""
        ledger = Ledger()
        for number, (label, port) in enumerate(PORTS.items()):
            mappings, _ = ports.parse_list(f"{port}:80")
            ipv4, ipv6 = (ip_address(self.addresses[label][f]) for f in (4, 6))
            endpoint = Endpoint(ipv4=ipv4, ipv6=ipv6)  # type: ignore[arg-type]
            ledger.put(Workload(key=Key("test", label), created_at=number, requests=mappings, endpoint=endpoint))
        ledger.settle()
        table = ruleset.build([b for key in ledger.owners() for b in ledger.bindings(key)], found)
        self.nft.apply(table.rebuild())
        assert self.nft.listing() == table.listing()

    def bridge_nf(self, value: int) -> None:
        """Say whether bridged frames pass the IP hooks, and make the pass that the watcher makes."""
        for which in ("iptables", "ip6tables"):
            self.lab.host.sysctl(f"net/bridge/bridge-nf-call-{which}", value)
        self.lab.host.call(lambda: links.isolate([self.names["s1"], self.names["s2"]]))

    def ask(self, source: str, target: str, port: int, family: Family) -> tuple[str, str] | Failure:
        """Give who answered and whom they saw, or how it failed."""
        answer = ask(self.ns[source], self.addresses[target][family], port, timeout=SILENCE)
        return (answer.name, answer.peer[0]) if isinstance(answer, Answer) else answer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give the lab of this module: bridges and containers are made by the product."""
    with Lab() as lab, contextlib.ExitStack() as stack:
        yield Site(lab, stack, tmp_path_factory.mktemp("state"))


@pytest.fixture
def site(made: Site) -> Site:
    """Give the lab with its table, and without flows of an earlier test."""
    made.lab.host.run("conntrack", "-F", check=False)
    made.publish()
    made.bridge_nf(0)
    return made


# --------------------------------------------------------------------------------------------------- isolated


@bridged_or_not
@both_families
def test_containers_of_an_isolated_network(site: Site, family: Family, bridge_nf: int):
    """They do not reach each other; those of a network beside it do, and everybody reaches the outside."""
    site.bridge_nf(bridge_nf)
    assert site.ask("s2", "s1", 80, family) in DEAD
    assert site.ask("s1", "s2", 80, family) in DEAD
    assert site.ask("c2", "c1", 80, family) == ("c1", site.addresses["c2"][family])
    assert site.ask("s2", "remote", 80, family) == ("remote", HOST[family])


@bridged_or_not
@both_families
@pytest.mark.parametrize("source", ["remote", "host", "s1", "s2", "c1"])
def test_published_ports_of_an_isolated_network(site: Site, source: str, family: Family, bridge_nf: int):
    """A published port answers everybody: outside, host, another network, a sibling, and the container itself."""
    site.bridge_nf(bridge_nf)
    own = site.addresses["cp-s"][family]
    expected = {
        "remote": REMOTE[family],
        "host": own,
        "s1": own,
        "s2": own,
        "c1": site.addresses["c1"][family],
    }
    assert site.ask(source, "host", 8081, family) == ("s1", expected[source])
    if source in ("s1", "s2"):
        assert site.ask(source, "cp-s", 8081, family) == ("s1", own)


@bridged_or_not
@both_families
def test_the_way_round_by_the_host(site: Site, family: Family, bridge_nf: int):
    """What a container sends to its sibling by the gateway is dropped; without the rule it arrives."""
    site.bridge_nf(bridge_nf)
    target, gateway = site.addresses["s1"][family], site.addresses["cp-s"][family]
    route = f"{target}/{ {4: 32, 6: 128}[family] } via {gateway}"
    probe = "table inet probe { chain c { type filter hook input priority 0; tcp dport 80 counter; }; }"
    site.ns["s2"].ip(f"route add {route}")
    try:
        arrived = []
        for found in (LINKS, dataclasses.replace(LINKS, isolated=frozenset())):
            site.publish(found)
            site.ns["s1"].nft(probe)
            site.ask("s2", "s1", 80, family)
            arrived.append("packets 0 " not in site.ns["s1"].nft("list table inet probe"))
            site.ns["s1"].nft("delete table inet probe")
    finally:
        site.ns["s2"].ip(f"route delete {route}")
    assert arrived == [False, True]


@both_families
def test_a_setting_that_changes_does_not_open(site: Site, family: Family):
    """Docker that starts sets bridge-nf-call: until the next pass containers stay apart, and after it."""
    for which in ("iptables", "ip6tables"):
        site.lab.host.sysctl(f"net/bridge/bridge-nf-call-{which}", 1)
    assert site.ask("s2", "s1", 80, family) in DEAD
    site.bridge_nf(1)
    assert site.ask("s2", "s1", 80, family) in DEAD


# --------------------------------------------------------------------------------------------------- internal


def test_an_internal_network_has_no_default_route(site: Site):
    """Containers know the way to their own subnet alone."""
    for version in ("-4", "-6"):
        assert site.ns["i1"].run("ip", version, "route", "show", "default").stdout == ""
        assert site.ns["c1"].run("ip", version, "route", "show", "default").stdout != ""


@bridged_or_not
@both_families
def test_inside_an_internal_network(site: Site, family: Family, bridge_nf: int):
    """Siblings and the host reach each other there."""
    site.bridge_nf(bridge_nf)
    assert site.ask("i2", "i1", 80, family) == ("i1", site.addresses["i2"][family])
    assert site.ask("host", "i1", 80, family) == ("i1", site.addresses["cp-i"][family])
    with serve(site.ns["host"], 7000, family=family, name="host"):
        assert site.ask("i1", "cp-i", 7000, family) == ("host", site.addresses["i1"][family])


@pytest.fixture
def routed(site: Site) -> Iterator[Site]:
    """Give `i1` the default routes that it could set up itself with CAP_NET_ADMIN."""
    ways = [f"default via {site.addresses['cp-i'][family]}" for family in (4, 6)]
    site.ns["i1"].ip(*(f"route add {way}" for way in ways))
    yield site
    site.ns["i1"].ip(*(f"route delete {way}" for way in ways))


@bridged_or_not
@both_families
def test_nothing_leaves_or_enters_an_internal_network(routed: Site, family: Family, bridge_nf: int):
    """Neither by a route of the container's own, nor by published ports, its own or those of others."""
    routed.bridge_nf(bridge_nf)
    asked = (
        ("i1", "remote", 80),
        ("i1", "c1", 80),
        ("i1", "host", 8080),
        ("remote", "i1", 80),
        ("c1", "i1", 80),
        ("remote", "host", 8082),
        ("c1", "host", 8082),
    )
    assert [routed.ask(*each, family) for each in asked] == [TIMEOUT] * len(asked)


@both_families
def test_it_is_the_rules_that_close_an_internal_network(routed: Site, family: Family):
    """The same ways are open where the rules do not know that the network is internal."""
    routed.publish(dataclasses.replace(LINKS, internal=frozenset()))
    assert routed.ask("i1", "remote", 80, family) == ("remote", HOST[family])
    assert routed.ask("i1", "host", 8080, family) == ("c1", routed.addresses["i1"][family])
    assert routed.ask("remote", "host", 8082, family) == ("i1", REMOTE[family])


# ------------------------------------------------------------------------------------------ between networks


@both_families
def test_between_two_networks_only_published_ports_are_open(site: Site, family: Family):
    """A container of another network reaches the published port, and nothing else of the container."""
    assert site.ask("s1", "host", 8080, family) == ("c1", site.addresses["s1"][family])
    assert site.ask("s1", "cp-s", 8080, family) == ("c1", site.addresses["s1"][family])
    assert site.ask("s1", "c1", 80, family) is TIMEOUT
    assert site.ask("c1", "s1", 80, family) is TIMEOUT
    assert site.ask("s1", "host", 80, family) is REFUSED


# ----------------------------------------------------------------------------------------- made and removed


class Machine:
    """A host with our directories, on which the product's functions are called."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.host = lab.host
        self.settings = Settings(root=directory / "root", state=directory / "state")
        self.root = self.settings.root

    def create(self, name: str, **words: Any) -> Network:
        wish = define.read(name=name, **words)
        return self.host.call(lambda: administer.create(self.root, wish))

    def remove(self, name: str) -> None:
        self.host.call(lambda: administer.remove(self.root, name))

    def attach(self, key: Key, name: str, wanted: str | None = None) -> attach.Attachment:
        ip = IPv4Address(wanted) if wanted else None
        return self.host.call(lambda: attach.attach(self.settings, key, name, ip))

    def links(self) -> set[str]:
        return {name for _, name in self.host.call(socket.if_nameindex)} - {"lo", "eth0"}


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> Iterator[Machine]:
    """Give a host without networks; what was attached is detached at the end."""
    made = Machine(lab, tmp_path)
    yield made
    for lease in list(leases.every(made.root)):
        made.host.call(lambda lease=lease: attach.detach(made.root, lease.container))


WEB = Key("default", "web")


def shown(ns: Netns, *command: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ns.run("ip", "-json", *command).stdout or "[]")
    return found


def test_create_and_remove(machine: Machine):
    """The bridge comes and goes with the network; the second network gets the next subnet."""
    first, second = machine.create("one"), machine.create("two")
    assert machine.links() == {"cp-one", "cp-two"}
    assert (first.ipv4, second.ipv4) == (IPv4Network("10.208.0.0/20"), IPv4Network("10.208.16.0/20"))
    assert networks.load_all(machine.root) == [first, second]
    machine.remove("one")
    assert machine.links() == {"cp-two"}
    assert not (machine.root / "networks/one").exists()
    with pytest.raises(NotFoundError, match="no network named 'one'"):
        machine.remove("one")
    assert machine.create("three").ipv4 == first.ipv4
    # The default network, made last, keeps off theirs although no container has made a route.
    machine.host.ip("link delete cp-two")
    assert machine.host.call(lambda: networks.load_or_create_default(machine.root)).ipv4 == IPv4Network(
        "10.208.32.0/20"
    )


def test_a_network_in_use_is_not_removed(machine: Machine):
    """The error names who is on it; once they are gone it goes."""
    machine.create("back")
    machine.attach(WEB, "back")
    with pytest.raises(ConflictError, match="network back is in use by default/web") as caught:
        machine.remove("back")
    assert caught.value.hint == "ctrport rm -f web"
    assert "cp-back" in machine.links()
    machine.host.call(lambda: attach.detach(machine.root, WEB))
    machine.remove("back")
    assert machine.links() == set()


def test_the_default_network_comes_back(machine: Machine):
    """It can be removed when nobody is on it, made with options of one's own, and is made by the next run."""
    machine.attach(WEB, "default")
    with pytest.raises(ConflictError, match="network default is in use"):
        machine.remove("default")
    machine.host.call(lambda: attach.detach(machine.root, WEB))
    machine.remove("default")
    assert machine.links() == set()
    assert machine.attach(WEB, "default").bridge == "ctrport0"
    machine.host.call(lambda: attach.detach(machine.root, WEB))
    machine.remove("default")
    machine.create("default", subnet="10.9.0.0/24")
    assert str(machine.attach(WEB, "default").ipv4) == "10.9.0.2"


def test_mtu_and_gateway(machine: Machine):
    """Bridge, veth pair and container have the MTU; the gateway is not given to a container."""
    machine.create("small", subnet="10.9.0.0/29", gateway="10.9.0.3", ipv6_subnet="fd00:9::/64", mtu=1400)
    attached = [machine.attach(Key("default", f"c{n}"), "small") for n in range(5)]
    assert [str(each.ipv4) for each in attached] == ["10.9.0.2", "10.9.0.4", "10.9.0.5", "10.9.0.6", "10.9.0.1"]
    with pytest.raises(ConflictError, match=r"all 5 addresses of 10\.9\.0\.0/29 are leased"):
        machine.attach(WEB, "small")
    inside = Netns.at(attached[0].netns, "c0")
    outer = links.host_interface(attached[0].netns.name)
    for ns, interface in ((machine.host, "cp-small"), (machine.host, outer), (inside, "eth0")):
        assert shown(ns, "link", "show", "dev", interface)[0]["mtu"] == 1400
    for version, gateway in (("-4", "10.9.0.3"), ("-6", "fd00:9::3")):
        assert shown(inside, version, "route", "show", "default")[0]["gateway"] == gateway
    with inside, serve(machine.host, 7000, family=6, name="host"):
        assert isinstance(ask(inside, "fd00:9::3", 7000), Answer)


def test_what_the_kernel_refuses_leaves_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    """A bridge that cannot be made takes its network's file with it."""

    def refuse(_: Network) -> None:
        raise KernelError("no")

    monkeypatch.setattr(links, "ensure_bridge", refuse)
    with pytest.raises(KernelError):
        machine.create("back")
    assert networks.load_all(machine.root) == []


def test_a_name_that_an_interface_has(machine: Machine):
    """A bridge never takes over an interface of somebody else's."""
    machine.host.ip("link add name cp-back type bridge")
    made = machine.create("back")
    assert made.bridge != "cp-back"
    assert machine.links() == {"cp-back", made.bridge}


def test_all_networks_are_repaired(machine: Machine):
    """After a reboot or a flush every network has its bridge again, with containers or without."""
    machine.create("one")
    machine.create("two", isolate=True)
    made = machine.attach(WEB, "two")
    machine.host.ip("link delete cp-one", "link delete cp-two")
    machine.host.call(lambda: attach.repair(machine.settings, {WEB}, set()))
    outer = links.host_interface(made.netns.name)
    assert machine.links() == {"cp-one", "cp-two", outer}
    port = json.loads(machine.host.run("bridge", "-json", "-details", "link", "show", "dev", outer).stdout)
    hooked = machine.host.sysctl("net/bridge/bridge-nf-call-iptables") == "1"
    assert port[0]["isolated"] is not hooked


def test_a_network_of_the_first_release(machine: Machine):
    """A file with name, bridge and subnets alone is a network with the defaults of what came later."""
    where = machine.root / "networks/default"
    where.mkdir(parents=True)
    old = {"name": "default", "bridge": "ctrport0", "ipv4": "10.208.0.0/20", "ipv6": None}
    (where / "network.json").write_text(json.dumps(old))
    assert networks.load(machine.root, "default") == Network(
        name="default", bridge="ctrport0", ipv4=IPv4Network("10.208.0.0/20")
    )
    assert str(machine.attach(WEB, "default").ipv4) == "10.208.0.2"
