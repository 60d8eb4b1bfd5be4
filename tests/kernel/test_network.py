"""Networks, containers' namespaces and settings, made in the namespace of a host that has nothing else to do."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ctrport.config import Settings
from ctrport.errors import ConflictError, HostError, InputError, NotFoundError
from ctrport.model.workload import Key
from ctrport.network import attach, leases, links, netns, networks, proc
from ctrport.network.networks import Network
from lab import Answer, Lab, Netns, ask, serve, until

if TYPE_CHECKING:
    from collections.abc import Iterator

NETWORK = Network(
    name="default",
    bridge="ctrport0",
    ipv4=IPv4Network("198.51.100.0/28"),
    ipv6=IPv6Network("2001:db8:a::/64"),
)
GATEWAY4, GATEWAY6 = "198.51.100.1", "2001:db8:a::1"
WEB, DB = Key("default", "web"), Key("default", "db")


class Machine:
    """A host with our directories, on which the product's functions are called."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.host = lab.host
        self.settings = self.at("/run/containerd/containerd.sock", directory)
        self.root = self.settings.root
        networks.save(self.root, NETWORK)

    @staticmethod
    def at(address: str, directory: Path) -> Settings:
        return Settings(address=address, root=directory / "root", state=directory / "state")

    def attach(self, key: Key, wanted: str | None = None, settings: Settings | None = None) -> attach.Attachment:
        ip = IPv4Address(wanted) if wanted else None
        return self.host.call(lambda: attach.attach(settings or self.settings, key, "default", ip))

    def detach(self, key: Key) -> None:
        self.host.call(lambda: attach.detach(self.root, key))

    def repair(self, known: set[Key], kept: set[Key] | None = None) -> None:
        self.host.call(lambda: attach.repair(self.settings, known, kept or set()))

    def links(self) -> list[str]:
        """Give the host's interfaces other than those of the lab."""
        return sorted({name for _, name in self.host.call(socket.if_nameindex)} - {"lo", "eth0"})

    def python(self, code: str) -> Any:
        """Run code in a process of the host, whose /proc/self is the host's, and give what it leaves in `x`."""
        head = f"import sys, json; sys.path[:0] = {sys.path!r}\n"
        tail = "\nprint(json.dumps(x, default=str))"
        return json.loads(self.host.run(sys.executable, "-c", head + code + tail).stdout)


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> Iterator[Machine]:
    """Give a host without containers; what was attached is detached at the end."""
    made = Machine(lab, tmp_path)
    yield made
    for lease in list(leases.every(made.root)):
        made.detach(lease.container)


def peer(answer: object) -> object:
    return answer.peer[0] if isinstance(answer, Answer) else answer


def show(ns: Netns, *command: str) -> list[dict[str, Any]]:
    """Give what iproute2 shows, read."""
    found: list[dict[str, Any]] = json.loads(ns.run("ip", "-json", *command).stdout or "[]")
    return found


def global_addresses(ns: Netns, interface: str) -> list[str]:
    shown = show(ns, "address", "show", "dev", interface, "scope", "global")
    found = [address for link in shown for address in link.get("addr_info", ()) if address]
    return [f"{address['local']}/{address['prefixlen']}" for address in found]


# ----------------------------------------------------------------------------------------- attach and detach


def test_what_an_attached_container_has(machine: Machine):
    """Addresses, default routes, loopback, and the right to serve port 80 without privileges."""
    made = machine.attach(WEB)
    assert (made.ipv4, made.ipv6) == (IPv4Address("198.51.100.2"), IPv6Address("2001:db8:a::2"))
    assert made.bridge == "ctrport0"
    inside = Netns.at(made.netns, "web")
    assert global_addresses(inside, "eth0") == ["198.51.100.2/28", "2001:db8:a::2/64"]
    for version, gateway in (("-4", GATEWAY4), ("-6", GATEWAY6)):
        routes = show(inside, version, "route", "show", "default")
        assert [(r["gateway"], r["dev"]) for r in routes] == [(gateway, "eth0")]
    assert "UP" in show(inside, "link", "show", "dev", "lo")[0]["flags"]
    assert inside.sysctl("net.ipv4.ip_unprivileged_port_start") == "0"


def test_what_the_host_has_after_an_attach(machine: Machine):
    """A bridge with the gateways, a port on it, and the settings that a published port needs."""
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        machine.host.sysctl(name, 0)
    made = machine.attach(WEB)
    assert global_addresses(machine.host, "ctrport0") == [f"{GATEWAY4}/28", f"{GATEWAY6}/64"]
    outer = links.host_interface(made.netns.name)
    assert machine.links() == sorted([outer, "ctrport0"])
    assert show(machine.host, "link", "show", "dev", outer)[0]["master"] == "ctrport0"
    assert machine.host.sysctl("net.ipv4.ip_forward") == "1"
    assert machine.host.sysctl("net.ipv6.conf.all.forwarding") == "1"
    assert machine.host.sysctl("net/ipv4/conf/ctrport0/route_localnet") == "1"


@pytest.mark.parametrize("family", [4, 6])
def test_host_and_container_reach_each_other_at_once(machine: Machine, family: Literal[4, 6]):
    """The addresses can be used the moment attach returns, without a wait for duplicates."""
    made = machine.attach(WEB)
    inside = Netns.at(made.netns, "web")
    address = str({4: made.ipv4, 6: made.ipv6}[family])
    gateway = {4: GATEWAY4, 6: GATEWAY6}[family]
    with inside, serve(inside, 80, family=family), serve(machine.host, 7000, family=family):
        assert peer(ask(machine.host, address, 80)) == gateway
        assert peer(ask(inside, gateway, 7000)) == address


def test_two_containers_have_two_addresses_and_reach_each_other(machine: Machine):
    """Nothing is shared: addresses, namespaces, hardware addresses; one bridge joins them."""
    web, db = machine.attach(WEB), machine.attach(DB)
    assert (web.ipv4, db.ipv4) == (IPv4Address("198.51.100.2"), IPv4Address("198.51.100.3"))
    assert web.netns != db.netns
    one, two = Netns.at(web.netns, "web"), Netns.at(db.netns, "db")
    with one, serve(one, 80):
        assert peer(ask(two, str(web.ipv4), 80)) == str(db.ipv4)
    hardware = [show(ns, "link", "show", "dev", "eth0")[0]["address"] for ns in (one, two)]
    assert hardware == ["02:42:c6:33:64:02", "02:42:c6:33:64:03"]


def test_the_bridge_s_hardware_address_stays(machine: Machine):
    """It does not change with the ports, or containers would send to an address that is gone."""
    machine.attach(WEB)
    before = show(machine.host, "link", "show", "dev", "ctrport0")[0]["address"]
    machine.attach(DB)
    machine.detach(WEB)
    assert show(machine.host, "link", "show", "dev", "ctrport0")[0]["address"] == before == "02:42:c6:33:64:01"


@pytest.mark.parametrize(
    "damage",
    [
        ("addr", "del", f"{GATEWAY4}/28", "dev", "ctrport0"),
        ("addr", "del", f"{GATEWAY6}/64", "dev", "ctrport0"),
        ("link", "set", "ctrport0", "down"),
    ],
    ids=["no IPv4 address", "no IPv6 address", "down"],
)
def test_a_bridge_that_lacks_something(machine: Machine, damage: tuple[str, ...]):
    """The next container on a bridge brings back what somebody has taken from it."""
    machine.attach(WEB)
    before = machine.host.run("ip", "-brief", "address", "show", "dev", "ctrport0").stdout.split()
    machine.host.run("ip", *damage)
    assert machine.host.run("ip", "-brief", "address", "show", "dev", "ctrport0").stdout.split() != before
    machine.attach(DB)
    after = machine.host.run("ip", "-brief", "address", "show", "dev", "ctrport0").stdout.split()
    assert (after[1], set(after)) == ("UP", set(before))


def test_the_mtu_is_the_uplink_s(machine: Machine):
    """A host on a tunnel or an overlay gives containers packets that fit."""
    machine.host.ip("link set eth0 mtu 1400")
    made = machine.attach(WEB)
    found = [
        show(machine.host, "link", "show", "dev", "ctrport0"),
        show(machine.host, "link", "show", "dev", links.host_interface(made.netns.name)),
        show(Netns.at(made.netns, "web"), "link", "show", "dev", "eth0"),
    ]
    assert [each[0]["mtu"] for each in found] == [1400, 1400, 1400]


def test_the_mtu_without_an_uplink(machine: Machine):
    """A host without a default route has Ethernet's usual size."""
    machine.host.ip("route delete default via 192.0.2.2", "route delete default via 2001:db8::2")
    made = machine.attach(WEB)
    assert show(Netns.at(made.netns, "web"), "link", "show", "dev", "eth0")[0]["mtu"] == 1500


def test_a_wanted_address(machine: Machine):
    """The address asked for is given, with the IPv6 one of the same number; taken or foreign ones are refused."""
    made = machine.attach(WEB, "198.51.100.9")
    assert (made.ipv4, made.ipv6) == (IPv4Address("198.51.100.9"), IPv6Address("2001:db8:a::9"))
    with pytest.raises(ConflictError, match=r"address 198\.51\.100\.9 is held by default/web"):
        machine.attach(DB, "198.51.100.9")
    for foreign in ("192.0.2.5", GATEWAY4, "198.51.100.0", "198.51.100.15"):
        with pytest.raises(InputError, match="is not a container address of network default"):
            machine.attach(DB, foreign)
    assert [lease.container for lease in leases.every(machine.root)] == [WEB]


def test_an_unknown_network(machine: Machine):
    """A network that does not exist is said so, and nothing is made."""
    with pytest.raises(NotFoundError, match="no network named 'other'"):
        machine.host.call(lambda: attach.attach(machine.settings, WEB, "other"))
    assert machine.links() == []


def test_a_failed_attach_leaves_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    """Whatever step fails: lease, namespace and veth pair are gone."""

    def refuse(*_: object) -> None:
        raise HostError("no")

    monkeypatch.setattr(links, "_configure", refuse)
    before = set(netns.DIRECTORY.iterdir())
    with pytest.raises(HostError, match="no"):
        machine.attach(WEB)
    assert list(leases.every(machine.root)) == []
    assert machine.links() == ["ctrport0"]
    assert {p for p in set(netns.DIRECTORY.iterdir()) - before if p.name.startswith("ctrport-web-")} == set()


def test_detach_takes_everything_back(machine: Machine):
    """Namespace, veth pair, lease and files are gone; the bridge stays for the next one. Twice is once."""
    made = machine.attach(WEB)
    files = machine.root / "containers/default/web"
    files.mkdir(parents=True, exist_ok=True)
    (files / "hosts").write_text("x")
    machine.detach(WEB)
    assert not made.netns.exists()
    assert not files.exists()
    assert list(leases.every(machine.root)) == []
    assert machine.links() == ["ctrport0"]
    machine.detach(WEB)
    assert machine.links() == ["ctrport0"]


def no_bridge(machine: Machine, _: attach.Attachment) -> None:
    machine.host.ip("link delete ctrport0")


def no_veth_pair(machine: Machine, made: attach.Attachment) -> None:
    machine.host.ip(f"link delete {links.host_interface(made.netns.name)}")


def no_eth0(_: Machine, made: attach.Attachment) -> None:
    Netns.at(made.netns, "web").ip("link delete eth0")


def no_namespace(_: Machine, made: attach.Attachment) -> None:
    netns.remove(made.netns.name)


def plain_file(_: Machine, made: attach.Attachment) -> None:
    """Leave what a reboot leaves."""
    netns.remove(made.netns.name)
    made.netns.touch()


Accident = Callable[[Machine, attach.Attachment], None]


@pytest.mark.parametrize("accident", [no_namespace, no_veth_pair, no_bridge, plain_file])
def test_detach_after_an_accident(machine: Machine, accident: Accident):
    """What is gone already does not keep the rest."""
    made = machine.attach(WEB)
    accident(machine, made)
    machine.detach(WEB)
    assert not made.netns.exists()
    assert list(leases.every(machine.root)) == []
    assert set(machine.links()) <= {"ctrport0"}


def test_detach_of_a_stranger_touches_nobody(machine: Machine):
    """A container of the same id in another namespace of containerd is another container."""
    made = machine.attach(WEB)
    machine.detach(Key("other", "web"))
    assert netns.is_mounted(made.netns)


# ------------------------------------------------------------------------------------------------------ repair


@pytest.mark.parametrize("accident", [no_bridge, no_veth_pair, no_eth0])
def test_repair_connects_again(machine: Machine, accident: Accident):
    """Host, sibling and outside are reached as before, in the same namespace with the same address."""
    made, sibling = machine.attach(WEB), machine.attach(DB)
    accident(machine, made)
    machine.repair({WEB, DB})
    inside, other = Netns.at(made.netns, "web"), Netns.at(sibling.netns, "db")
    with inside, serve(inside, 80), serve(inside, 80, family=6):
        assert peer(ask(machine.host, str(made.ipv4), 80)) == GATEWAY4
        assert peer(ask(other, str(made.ipv4), 80)) == str(sibling.ipv4)
        assert peer(ask(other, str(made.ipv6), 80)) == str(sibling.ipv6)
        assert peer(ask(machine.lab.remote, str(made.ipv4), 80)) == "192.0.2.2"  # its default route is back
    assert machine.host.sysctl("net/ipv4/conf/ctrport0/route_localnet") == "1"


def test_repair_after_a_reboot(machine: Machine):
    """No namespace, no bridge, a plain file in its place: all of it is made again for what containerd has."""
    made = machine.attach(WEB)
    machine.host.ip("link delete ctrport0")
    netns.remove(made.netns.name)
    made.netns.touch()
    until(lambda: machine.links() == [])
    machine.repair({WEB})
    assert netns.is_mounted(made.netns)
    assert global_addresses(Netns.at(made.netns, "web"), "eth0") == ["198.51.100.2/28", "2001:db8:a::2/64"]


def test_repair_of_what_is_whole_changes_nothing(machine: Machine):
    """The same interfaces are there afterwards, not new ones of the same name."""
    machine.attach(WEB)
    before = machine.host.call(socket.if_nameindex)
    machine.repair({WEB})
    machine.repair({WEB})
    assert machine.host.call(socket.if_nameindex) == before


def test_repair_removes_what_no_container_has(machine: Machine, tmp_path: Path):
    """Leases of containers that are gone go, those about to be created and those of another containerd stay."""
    gone, kept, foreign = Key("default", "gone"), Key("default", "kept"), Key("default", "foreign")
    other = machine.at("/run/other/containerd.sock", tmp_path)
    made = {key: machine.attach(key) for key in (WEB, gone, kept)}
    made[foreign] = machine.attach(foreign, settings=other)
    machine.repair({WEB}, {kept})
    assert {lease.container for lease in leases.every(machine.root)} == {WEB, kept, foreign}
    assert [key for key, each in made.items() if not netns.is_mounted(each.netns)] == [gone]
    assert len(machine.links()) == 4


# --------------------------------------------------------------------------------------------- choice of subnet


def test_the_subnet_avoids_the_host_s_routes(machine: Machine, tmp_path: Path):
    """A network that is chosen on first use overlaps no route; a default route takes nothing."""
    machine.host.ip("route add 10.208.0.0/16 via 192.0.2.2", "address add 10.209.3.1/24 dev eth0")
    found = machine.python(
        "from pathlib import Path\nfrom ctrport.network import networks\n"
        f"a = networks.load_or_create_default(Path({str(tmp_path / 'new')!r}))\n"
        f"b = networks.load_or_create_default(Path({str(tmp_path / 'new')!r}))\n"
        "x = [a.ipv4, a.ipv6, a == b]"
    )
    assert found[0] == "10.209.16.0/20"
    assert IPv6Network(found[1]).subnet_of(IPv6Network("fd00::/8"))
    assert found[2] is True


def test_a_host_with_ipv6_disabled(machine: Machine, tmp_path: Path):
    """Where new interfaces can have no IPv6 addresses the network is IPv4 only, and containers work."""
    for which in ("all", "default"):
        machine.host.sysctl(f"net.ipv6.conf.{which}.disable_ipv6", 1)
    settings = machine.at("/run/x.sock", tmp_path / "new")
    found = machine.python(
        "from pathlib import Path\nfrom ctrport.config import Settings\nfrom ctrport.model.workload import Key\n"
        "from ctrport.network import attach\n"
        f"settings = Settings(root=Path({str(settings.root)!r}), state=Path({str(settings.state)!r}))\n"
        "made = attach.attach(settings, Key('default', 'web'), 'default')\n"
        "x = [made.netns, made.ipv4, made.ipv6]"
    )
    try:
        inside = Netns.at(found[0], "web")
        assert found[2] is None
        with inside, serve(inside, 80):
            assert isinstance(ask(machine.host, found[1], 80), Answer)
    finally:
        machine.host.call(lambda: attach.detach(settings.root, WEB))


# -------------------------------------------------------------------------------------------- namespaces and /proc


def test_a_namespace_file(tmp_path: Path):
    """Only a mounted namespace counts as one, creation is idempotent, and removal may be repeated."""
    name = "ctrport-test-namespace-file"
    path = netns.create(name)
    try:
        inode = path.stat().st_ino
        assert netns.is_mounted(path)
        assert netns.create(name).stat().st_ino == inode
    finally:
        netns.remove(name)
    assert not path.exists()
    netns.remove(name)
    (tmp_path / "plain").touch()
    assert not netns.is_mounted(tmp_path / "plain")
    assert not netns.is_mounted(tmp_path / "none")


def test_work_inside_a_namespace_hands_on_its_error(machine: Machine):
    """What fails inside fails outside, and the caller's thread has not moved."""
    made = machine.attach(WEB)
    before = socket.if_nameindex()
    names: list[str] = []
    netns.inside(made.netns, lambda: names.extend(name for _, name in socket.if_nameindex()))
    assert names == ["lo", "eth0"]
    with pytest.raises(ZeroDivisionError):
        netns.inside(made.netns, lambda: 1 // 0)
    assert socket.if_nameindex() == before


def test_the_addresses_of_a_process(machine: Machine):
    """A process is known by the addresses and routes of its namespace; a process that is gone is an error."""
    made = machine.attach(WEB)
    inside = Netns.at(made.netns, "web")
    with inside:
        sleeper = inside.popen("sh", "-c", "echo; exec sleep 60", stdout=-1)
        sleeper.stdout.readline()
        found = proc.read(sleeper.pid)
    assert (found.ipv4, found.ipv6) == (made.ipv4, made.ipv6)
    assert found.addresses == (made.ipv4, made.ipv6)
    assert {(str(r.network), r.interface, r.gateway) for r in found.routes} >= {
        ("0.0.0.0/0", "eth0", True),
        ("198.51.100.0/28", "eth0", False),
        ("::/0", "eth0", True),
        ("2001:db8:a::/64", "eth0", False),
    }
    with pytest.raises(OSError, match=r".+"):
        proc.read(sleeper.pid)


def test_the_way_to_a_container(machine: Machine):
    """The host finds the interface by its routes; what it does not know goes out by the default route."""
    machine.attach(WEB)
    addresses = ["198.51.100.2", "2001:db8:a::2", "203.0.113.1", "2001:db8:ffff::1", "192.0.2.2"]
    found = machine.python(
        "from ipaddress import ip_address\nfrom ctrport.network import proc\n"
        f"x = [proc.read().interface_towards(ip_address(a)) for a in {addresses!r}]"
    )
    assert found == ["ctrport0", "ctrport0", "eth0", "eth0", "eth0"]


def test_the_main_address_is_the_default_route_s(lab: Lab):
    """A container on two networks is reached by the one that its default route uses, whatever the numbers."""
    inside = lab.netns("two")
    inside.add_veth(lab.host, "eth0", "va", addresses=("198.51.100.2/28", "2001:db8:a::2/64"))
    inside.add_veth(lab.host, "eth1", "vb", addresses=("203.0.113.2/28", "2001:db8:b::2/64"))
    inside.ip("route add default via 203.0.113.1", "route add default via 2001:db8:b::1")
    sleeper = inside.popen("sh", "-c", "echo; exec sleep 60", stdout=-1)
    sleeper.stdout.readline()
    found = proc.read(sleeper.pid)
    assert (str(found.ipv4), str(found.ipv6)) == ("203.0.113.2", "2001:db8:b::2")
    assert len(found.addresses) == 4


# --------------------------------------------------------------------------------------- listeners and facts


def test_listeners_are_seen_and_connections_are_not(machine: Machine):
    """Sockets that wait for somebody are seen with their address and families; those in use are not."""

    def sockets() -> list[socket.socket]:
        made = []
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 7001)),  # noqa: S104 - inside the lab
            (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.10", 7002)),
            (socket.AF_INET6, socket.SOCK_STREAM, ("::", 7003)),
            (socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 7004)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 7005)),
            (socket.AF_INET6, socket.SOCK_DGRAM, ("::", 7006)),
            (socket.AF_INET6, socket.SOCK_STREAM, ("::ffff:192.0.2.1", 7007)),
            (socket.AF_INET6, socket.SOCK_STREAM, ("::", 7008)),
            (socket.AF_INET6, socket.SOCK_DGRAM, ("::", 7009)),
        ):
            opened = socket.socket(family, kind)
            if address[1] in (7008, 7009):
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(address)
            if kind == socket.SOCK_STREAM:
                opened.listen()
            made.append(opened)
        for kind, port in ((socket.SOCK_STREAM, 7101), (socket.SOCK_DGRAM, 7102)):
            opened = socket.socket(socket.AF_INET, kind)
            opened.bind(("0.0.0.0", port))  # noqa: S104 - inside the lab
            opened.connect(("192.0.2.10", 7002))
            made.append(opened)
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.bind(("0.0.0.0", 7103))  # noqa: S104 - inside the lab
        return [*made, bound]

    opened = machine.host.call(sockets)
    found = machine.python(
        "from ctrport.host import facts\n"
        "x = sorted([[s.port, s.protocol, s.address, s.families] for s in facts.listeners()])"
    )
    for each in opened:
        each.close()
    assert found == [
        [7001, "tcp", "0.0.0.0", [4]],  # noqa: S104 - printed, not bound
        [7002, "tcp", "192.0.2.10", [4]],
        [7003, "tcp", "::", [4, 6]],
        [7004, "tcp", "2001:db8::1", [6]],
        [7005, "udp", "127.0.0.1", [4]],
        [7006, "udp", "::", [4, 6]],
        [7007, "tcp", "192.0.2.1", [4]],
        [7008, "tcp", "::", [6]],
        [7009, "udp", "::", [6]],
    ]


def test_a_listener_has_a_name(machine: Machine):
    """The process is found by the socket; before that its user is known, and without a process nothing is."""
    with serve(machine.host, 7001) as server:
        found = machine.python(
            "from ctrport.host import facts\n"
            "one, = facts.listeners()\n"
            "x = [one.holder, [v.holder for v in facts.named([one, one._replace(inode=1)]).values()]]"
        )
        comm = Path(f"/proc/{server.pid}/comm").read_text().strip()
    assert found == ["a process of user root", [f"{comm} (pid {server.pid})"]]


def test_listeners_among_many_connections(machine: Machine):
    """The kernel gives listeners alone: a thousand connections make the answer no longer."""

    def connections() -> list[socket.socket]:
        server = socket.create_server(("127.0.0.1", 7001), backlog=2000)
        return [server, *(socket.create_connection(("127.0.0.1", 7001)) for _ in range(1000))]

    opened = machine.host.call(connections)
    found = machine.python("from ctrport.host import sockdiag\nx = len(list(sockdiag.sockets(6, 1 << 10)))")
    for each in opened:
        each.close()
    assert found == 1


def test_the_facts_of_a_host(machine: Machine):
    """Addresses, port range and reserved ports are this namespace's."""
    machine.host.sysctl("net.ipv4.ip_local_port_range", "40000 40999")
    machine.host.sysctl("net.ipv4.ip_local_reserved_ports", "40002-40003,40010")
    found = machine.python(
        "from ctrport.host import facts\n"
        "h = facts.read()\nx = [sorted(map(str, h.addresses)), h.automatic, sorted(h.reserved)]"
    )
    assert found == [
        ["192.0.2.1", "192.0.2.10", "2001:db8::1"],
        [40000, 40999],
        [40002, 40003, 40010],
    ]


def test_every_lease_has_its_own_address_in_its_network(machine: Machine):
    """A small network is filled to the last address, then says that it is full, and a detach makes room."""
    keys = [Key("default", f"c{number}") for number in range(13)]
    for key in keys:
        leases.take(machine.root, NETWORK, key, netns=f"n-{key.id}", containerd="")
    assert {int(lease.ipv4) - int(ip_address("198.51.100.0")) for lease in leases.every(machine.root)} == set(
        range(2, 15)
    )
    with pytest.raises(ConflictError, match=r"all 13 addresses of 198\.51\.100\.0/28 are leased"):
        machine.attach(WEB)
    leases.drop(machine.root, next(x for x in leases.every(machine.root) if x.container == keys[5]))
    assert machine.attach(WEB).ipv4 == IPv4Address("198.51.100.7")
