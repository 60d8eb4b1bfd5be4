"""The reachability contract: who reaches whom on a host where the whole program runs, in one look.

A `ContractSite` is a host with three networks of ours, one of them with isolation, a machine on its wire (`remote`)
and one behind it (`far`). The real watcher runs there, over a containerd that tests fill. `reach` tries every row
and gives what happened; `expected` gives what must happen where nobody else filters. A test compares the two as a
whole, with the rows that somebody else's firewall rightly decides put otherwise.

All rows are tried at the same time: most of what they cost is waiting for an answer that must not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fnmatch
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Self

from containerd_instance import STANDARD_PATH
from ctrport import control
from ctrport.config import Settings
from ctrport.model.workload import Key
from ctrport.network import leases, netns, networks
from ctrport.network.leases import Lease
from ctrport.network.networks import Network
from fakes import FakeContainerd, spec
from frames import forged
from lab import REFUSED, TIMEOUT, UNREACHABLE, Answer, Failure, Lab, Netns, Protocol, Server, ask, serve_everything
from program import Cli, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NETWORK_A = Network(
    name="a", bridge="ctrport0", ipv4=IPv4Network("198.51.100.0/25"), ipv6=IPv6Network("2001:db8:a::/64")
)
NETWORK_B = Network(
    name="b", bridge="ctrport1", ipv4=IPv4Network("198.51.100.128/25"), ipv6=IPv6Network("2001:db8:b::/64")
)
NETWORK_I = Network(
    name="i",
    bridge="ctrport2",
    ipv4=IPv4Network("198.18.0.0/24"),
    ipv6=IPv6Network("2001:db8:1::/64"),
    isolate=True,
)
HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
SECOND = "192.0.2.10"  # of the host
LATER = {4: "192.0.2.77", 6: "2001:db8::77"}  # added to the host when everything is published
REMOTE = {4: "192.0.2.2", 6: "2001:db8::2"}
HOST_TO_FAR = {4: "203.0.113.1", 6: "2001:db8:f::1"}
FAR = {4: "203.0.113.2", 6: "2001:db8:f::2"}
GATEWAY_A = {4: "198.51.100.1", 6: "2001:db8:a::1"}
GATEWAY_B = {4: "198.51.100.129", 6: "2001:db8:b::1"}
GATEWAY_I = {4: "198.18.0.1", 6: "2001:db8:1::1"}
C1 = {4: "198.51.100.2", 6: "2001:db8:a::2"}
C2 = {4: "198.51.100.3", 6: "2001:db8:a::3"}
C3 = {4: "198.51.100.130", 6: "2001:db8:b::2"}
I1 = {4: "198.18.0.2", 6: "2001:db8:1::2"}
I2 = {4: "198.18.0.3", 6: "2001:db8:1::3"}
CONTAINERS = {
    "c1": (NETWORK_A, C1),
    "c2": (NETWORK_A, C2),
    "c3": (NETWORK_B, C3),
    "i1": (NETWORK_I, I1),
    "i2": (NETWORK_I, I2),
}
# Of c1, 8080 on every address, 8082 on 127.0.0.1 alone, 8083 and 8084 on one address of the host; never 8081.
PUBLISHED = {
    "c1": "8080:80/P, 127.0.0.1:8082:80/P, 192.0.2.10:8083:80/P, [2001:db8::1]:8084:80/P",
    "i1": "8085:80/P",
}
OPERATOR_OPEN, OPERATOR_CLOSED = 7000, 7001  # services of the host, as the operator's firewall has them
LOCAL_SERVICE = 9000  # of the host, on 127.0.0.1 alone
SILENCE = 1.0  # seconds; all rows wait together, so it may be long enough for a machine that is busy

Outcome = tuple[str, str] | Failure | None
AnyOf = Outcome | frozenset[Outcome]  # several where the kernel leaves it to chance
Rows = dict[str, Outcome]
Expected = dict[str, AnyOf]
CLOSED: AnyOf = frozenset({TIMEOUT, UNREACHABLE})


@dataclasses.dataclass
class Machine:
    """What `program.Cli` asks of a containerd in a lab."""

    lab: Lab
    address: str
    environment: dict[str, str] = dataclasses.field(default_factory=lambda: {"PATH": STANDARD_PATH})


class ContractSite:
    """The lab with the program in it. Nothing of the program has run until `start`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = str(directory / "containerd.sock")
        self._stack = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.lab = stack.enter_context(Lab(forwarding=False))
            self.host, self.remote = self.lab.host, self.lab.remote
            self.far = self._far()
            for ns in (self.host, self.remote, self.far):
                tell_every_refusal(ns)
            self.bridged_frames_pass_ip_hooks(1)
            self._serve(stack, self.host, OPERATOR_OPEN, OPERATOR_CLOSED, loopback=LOCAL_SERVICE)
            self._serve(stack, self.remote, 8080, 9090)
            self._serve(stack, self.far, 8080, 9090)
            thread = threading.Thread(target=self._loop.run_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(lambda: self._loop.call_soon_threadsafe(self._loop.stop))
            self.containerd = FakeContainerd(Path(self.address))
            self._wait(self.containerd.start_server())
            stack.callback(lambda: self._wait(self.containerd.stop_server()))
            self.cli = Cli(Machine(self.lab, self.address), self.directory)  # type: ignore[arg-type]
            self.cli.environment["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={self.directory / 'none'}"
            self.sysctl_directory = self.directory / "sysctl.d"
            self.sysctl_directory.mkdir(mode=0o755)
            self.configure("")
            self.watcher = Watcher(self.cli)
            stack.callback(self.cli.close)
            self.netns = {name: self._lease(stack, name) for name in CONTAINERS}
            self.servers: dict[str, Server] = {}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---------------------------------------------------------------------------------------- making it

    def _far(self) -> Netns:
        far = self.lab.netns("far")
        self.host.add_veth(
            far,
            "eth1",
            "eth0",
            addresses=(f"{HOST_TO_FAR[4]}/24", f"{HOST_TO_FAR[6]}/64"),
            peer_addresses=(f"{FAR[4]}/24", f"{FAR[6]}/64"),
        )
        far.ip(*(f"route add default via {gateway}" for gateway in HOST_TO_FAR.values()))
        return far

    def _serve(self, stack: contextlib.ExitStack, ns: Netns, *ports: int, loopback: int | None = None) -> Server:
        return stack.enter_context(serve_everything(ns, *ports, loopback=loopback))

    def _lease(self, stack: contextlib.ExitStack, label: str) -> str:
        """Say on disk that a container is on its network; the program makes everything by that."""
        network, addresses = CONTAINERS[label]
        name = f"ctrport-test-{os.getpid()}-{os.urandom(3).hex()}-{label}"
        networks.save(self.cli.root, network)
        lease = Lease(
            network=network.name,
            ipv4=IPv4Address(addresses[4]),
            container=Key("test", label),
            netns=name,
            containerd=self.address,
        )
        leases.put(self.cli.root, lease)
        stack.callback(netns.remove, name)
        return name

    def configure(self, lines: str) -> None:
        """Write config.toml."""
        self.cli.config.write_text(f'sysctl_directory = "{self.sysctl_directory}"\n{lines}')

    def start(self) -> None:
        """Start the watcher, then the containers: their ports are published when this returns."""
        self.before = self.host_state()
        for name in CONTAINERS:
            self.create(name, PUBLISHED.get(name, ""))
        self.watcher.start()
        for name, wanted in self.netns.items():
            ns = self._stack.enter_context(Netns.at(netns.DIRECTORY / wanted, name))
            tell_every_refusal(ns)
            setattr(self, name, ns)
            # 8081 too: nothing but the translation must keep that port from being reached.
            self.servers[name] = self._serve(self._stack, ns, 80, 81, 8081)
            self.run(name)
        self.sync()
        self.later_addresses("add")

    c1: Netns
    c2: Netns
    c3: Netns
    i1: Netns
    i2: Netns

    def create(self, name: str, publish: str = "") -> None:
        """Have containerd know a container; /P in what it publishes stands for both protocols."""
        both = ", ".join(publish.replace("/P", f"/{proto}") for proto in ("tcp", "udp"))
        annotations = {"ctrport.io/publish": both} if publish else {}
        self._wait(self._call(lambda: self.containerd.add(Key("test", name), spec(annotations))))

    def run(self, name: str, inside: str | None = None) -> None:
        """Start its task: it is the server in its namespace, or in that of another container."""

        def start() -> None:
            self.containerd.start(Key("test", name), pid=self.servers[inside or name].pid)

        self._wait(self._call(start))

    def remove(self, name: str) -> None:
        self._wait(self._call(lambda: self.containerd.delete(Key("test", name))))

    def sync(self) -> None:
        """Have the watcher make a full pass, as `ctrport sync` does but without a process for it."""
        settings = Settings(address=self.address, root=self.cli.root, state=self.cli.state)

        async def ask_watcher() -> None:
            async with control.connect(settings) as link:
                assert link is not None, f"no watcher: {self.watcher.log}"
                await link.call("resync")

        self._wait(ask_watcher())

    def later_addresses(self, verb: str) -> None:
        """Add or delete the addresses that the host has since after the publish."""
        self.host.ip(
            f"address {verb} {LATER[4]}/24 dev eth0",
            f"address {verb} {LATER[6]}/64 dev eth0" + (" nodad preferred_lft 0" if verb == "add" else ""),
        )

    def bridged_frames_pass_ip_hooks(self, value: int) -> None:
        """Say whether bridged frames pass the IP hooks (br_netfilter); isolation follows at a full pass."""
        for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            assert self.host.sysctl(f"net/bridge/{name}", value) == str(value)

    async def _call(self, function: Callable[[], object]) -> None:
        function()

    def _wait(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------- looking

    def reach(self) -> Rows:
        """Try every row; flows of an earlier look do not help."""
        self.host.run("conntrack", "-F", check=False)
        wanted = rows()
        with ThreadPoolExecutor(len(wanted)) as pool:
            outcomes = pool.map(lambda row: row.try_on(self), wanted)
            return {row.name: outcome for row, outcome in zip(wanted, outcomes, strict=True)}

    def host_state(self) -> dict[str, str]:
        """Describe all that the program may change on the host, each as its own tools print it.

        Rules are without counts, and settings without those that move by themselves.
        """
        run = self.host.run
        found = {"nft": run("nft", "--stateless", "list", "ruleset").stdout}
        programs = ["iptables-nft-save", "ip6tables-nft-save"]
        for family, program in (("ip", "iptables-legacy-save"), ("ip6", "ip6tables-legacy-save")):
            if run("cat", f"/proc/net/{family}_tables_names").stdout:  # else the look would make the tables
                programs += [program]
        for program in programs:
            found[program] = re.sub(r"^#.*\n|\[\d+:\d+\]", "", run(program).stdout, flags=re.MULTILINE)
        found["links"] = re.sub(r"^\d+: ", "", run("ip", "-d", "-o", "link").stdout, flags=re.MULTILINE)
        for words in ("-4 -o address", "-6 -o address", "-4 route", "-6 route", "rule"):
            found[words] = run("ip", *words.split()).stdout
        found["settings"] = self.host.call(_settings)
        found["kept settings"] = "".join(p.read_text() for p in sorted(self.sysctl_directory.iterdir()))
        return found


def tell_every_refusal(ns: Netns) -> None:
    """Have the kernel refuse every packet aloud: it saves its breath after a few dozen a second."""
    ns.sysctl("net/ipv4/icmp_ratelimit", 0)
    ns.sysctl("net/ipv6/icmp/ratelimit", 0)
    for name in ("icmp_msgs_per_sec", "icmp_msgs_burst"):
        with contextlib.suppress(OSError):  # of the whole machine before Linux 6.11
            ns.sysctl(f"net/ipv4/{name}", 100000)


MOVING = re.compile(r"/(nf_conntrack_count|nf_conntrack_expect_count|stable_secret)$")


def _settings() -> str:
    """Give every setting of a network namespace; call it inside."""
    lines = []
    for path in sorted(Path("/proc/sys/net").rglob("*")):
        if path.is_file() and not MOVING.search(str(path)):
            with contextlib.suppress(OSError):  # write-only ones
                lines.append(f"{path}={path.read_text().strip()}\n")
    return "".join(lines)


# --------------------------------------------------------------------------------------------------- the rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the contract, for one protocol and family."""

    who: str  # asks: an attribute of the site
    what: str
    address: str
    port: int
    proto: Protocol
    must_be: AnyOf
    forged: bool = False  # in a frame to the host's hardware address, as no honest routing would send it

    @property
    def name(self) -> str:
        return f"{self.who} -> {self.what}, {self.proto}{6 if ':' in self.address else 4}"

    def try_on(self, site: ContractSite) -> Outcome:
        client: Netns = getattr(site, self.who)
        if self.forged:
            towards = (site.host, "eth0" if client is site.remote else NETWORK_A.bridge)
            source = REMOTE[4] if client is site.remote else C1[4]
            return forged(client, towards, source, self.address, self.port, proto=self.proto, within=SILENCE)
        return seen(ask(client, self.address, self.port, self.proto, timeout=SILENCE))


def seen(answer: Answer | Failure) -> Outcome:
    """Give who answered, and whom they saw."""
    return (answer.name, answer.peer[0]) if isinstance(answer, Answer) else answer


def expected(others: Expected | None = None) -> Expected:
    """Give what must happen; rows that a key fits, a pattern as for file names, are put otherwise."""
    found: Expected = {row.name: row.must_be for row in rows()}
    for pattern, outcome in (others or {}).items():
        fitting = fnmatch.filter(found, pattern)
        assert fitting, f"no row fits {pattern}"
        found.update(dict.fromkeys(fitting, outcome))
    return found


def differences(got: Rows, wanted: Expected) -> dict[str, str]:
    """Give the rows that are not as they must be, each with what it is and what it must be."""
    assert got.keys() == wanted.keys()
    return {
        name: f"{got[name]}, and must be {must_be}"
        for name, must_be in wanted.items()
        if got[name] not in (must_be if isinstance(must_be, frozenset) else (must_be,))
    }


def rows() -> list[Row]:
    """Give every row."""
    found = []
    for proto in ("tcp", "udp"):
        for who, what, address, port, must_be in [
            *(row for family in (4, 6) for row in _of_both_families(family)),
            *_of_ipv4(),
            *_of_ipv6(),
        ]:
            row = Row(who=who, what=what, address=address, port=port, proto=proto, must_be=must_be)  # type: ignore[arg-type]
            found.append(row)
        for who, port in (("remote", 8080), ("remote", 8082), ("remote", LOCAL_SERVICE), ("c1", LOCAL_SERVICE)):
            what = f"forged frame to 127.0.0.1:{port}"
            found.append(
                Row(who=who, what=what, address="127.0.0.1", port=port, proto=proto, must_be=None, forged=True)  # type: ignore[arg-type]
            )
    assert len({row.name for row in found}) == len(found)
    return found


Words = tuple[str, str, str, int, AnyOf]  # who, what, address, port, what must be


def _of_both_families(family: int) -> Iterator[Words]:
    host, gateway = HOST[family], GATEWAY_A[family]
    # From outside.
    yield "remote", "published", host, 8080, ("c1", REMOTE[family])
    yield "remote", "published, on an address added later", LATER[family], 8080, ("c1", REMOTE[family])
    yield "remote", "not published", host, 8081, REFUSED
    yield "remote", "container directly, published", C1[family], 80, TIMEOUT
    yield "remote", "container directly, not published", C1[family], 81, TIMEOUT
    yield "remote", "published on 127.0.0.1 alone", host, 8082, REFUSED
    yield "remote", "host's open service", host, OPERATOR_OPEN, ("host", REMOTE[family])
    yield "remote", "host's closed service", host, OPERATOR_CLOSED, ("host", REMOTE[family])
    # What only passes through.
    yield "remote", "somebody else's 8080 through the host", FAR[family], 8080, ("far", REMOTE[family])
    yield "far", "somebody else's 8080 through the host", REMOTE[family], 8080, ("remote", FAR[family])
    # The host's own programs.
    for what, address in (("own address", host), ("gateway", gateway), ("other gateway", GATEWAY_B[family])):
        yield "host", f"published, by {what}", address, 8080, ("c1", gateway)
    yield "host", "published on 127.0.0.1 alone, by own address", host, 8082, REFUSED
    yield "host", "container directly", C1[family], 80, ("c1", gateway)
    # Containers, by published ports.
    for who in ("c1", "c2"):
        yield who, "published, by host", host, 8080, ("c1", gateway)
        yield who, "published, by own gateway", gateway, 8080, ("c1", gateway)
        yield who, "published, by other gateway", GATEWAY_B[family], 8080, ("c1", gateway)
        yield who, "published on 127.0.0.1 alone", gateway, 8082, REFUSED
    yield "c3", "published, by host", host, 8080, ("c1", C3[family])
    yield "c3", "published, by own gateway", GATEWAY_B[family], 8080, ("c1", C3[family])
    yield "c3", "published, by other gateway", gateway, 8080, ("c1", C3[family])
    # Containers, directly.
    yield "c2", "container directly, published", C1[family], 80, ("c1", C2[family])
    yield "c2", "container directly, not published", C1[family], 81, ("c1", C2[family])
    yield "c3", "container directly, published", C1[family], 80, TIMEOUT
    yield "c3", "container directly, not published", C1[family], 81, TIMEOUT
    # A network with isolation.
    yield "remote", "published, of an isolated network", host, 8085, ("i1", REMOTE[family])
    yield "i2", "published, of its own isolated network", host, 8085, ("i1", GATEWAY_I[family])
    yield "c1", "published, of an isolated network", host, 8085, ("i1", C1[family])
    # By a rule, or by the bridge, and then the neighbour's hardware address cannot be found out.
    yield "i2", "container directly", I1[family], 80, CLOSED
    yield "i2", "published, by host", host, 8080, ("c1", I2[family])
    yield "i2", "remote", REMOTE[family], 9090, ("remote", host)
    # Containers, to the outside.
    for who in ("c1", "c3"):
        yield who, "remote", REMOTE[family], 9090, ("remote", host)
        yield who, "remote's 8080", REMOTE[family], 8080, ("remote", host)
        yield who, "far", FAR[family], 9090, ("far", HOST_TO_FAR[family])
        yield who, "far's 8080", FAR[family], 8080, ("far", HOST_TO_FAR[family])


def _of_ipv4() -> Iterator[Words]:
    for what, address in (("127.0.0.1", "127.0.0.1"), ("127.8.8.8", "127.8.8.8"), ("second address", SECOND)):
        yield "host", f"published, by {what}", address, 8080, ("c1", GATEWAY_A[4])
    yield "host", "published on 127.0.0.1 alone, there", "127.0.0.1", 8082, ("c1", GATEWAY_A[4])
    yield "host", "published on 127.0.0.1 alone, by 127.0.0.2", "127.0.0.2", 8082, REFUSED
    yield "host", "service on 127.0.0.1", "127.0.0.1", LOCAL_SERVICE, ("host", "127.0.0.1")
    yield "remote", "published on one address, there", SECOND, 8083, ("c1", REMOTE[4])
    yield "remote", "published on one address, elsewhere", HOST[4], 8083, REFUSED
    yield "host", "published on one address, there", SECOND, 8083, ("c1", GATEWAY_A[4])
    yield "host", "published on one address, by 127.0.0.1", "127.0.0.1", 8083, REFUSED
    yield "host", "published on one address, by another", HOST[4], 8083, REFUSED
    yield "c3", "published on one address, there", SECOND, 8083, ("c1", C3[4])


def _of_ipv6() -> Iterator[Words]:
    yield "host", "published, by [::1]", "::1", 8080, REFUSED
    yield "remote", "published on one address, there", HOST[6], 8084, ("c1", REMOTE[6])
    yield "remote", "published on one address, elsewhere", LATER[6], 8084, REFUSED
    yield "host", "published on one address, there", HOST[6], 8084, ("c1", GATEWAY_A[6])
    yield "host", "published on one address, by another", GATEWAY_A[6], 8084, REFUSED
