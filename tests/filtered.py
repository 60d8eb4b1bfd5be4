"""A host with two containers of ours behind somebody else's firewall: who gets through, in one look.

Used by the tests of other people's firewalls. Everything is made by the product; only the firewall is the test's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from ctrport.config import Config
from ctrport.firewall import ruleset
from ctrport.firewall.foreign import adjust
from ctrport.firewall.nft import LibNft
from ctrport.firewall.ruleset import Links
from ctrport.model import ports
from ctrport.model.ledger import Ledger
from ctrport.model.workload import Endpoint, Key, Workload
from ctrport.network import attach, netns
from ctrport.network.leases import Lease
from ctrport.network.networks import Network
from lab import Answer, Failure, Lab, Netns, ask, serve, until

if TYPE_CHECKING:
    from ctrport.firewall.foreign.obstacle import Obstacle

NETWORK = Network(
    name="a", bridge="ctrport0", ipv4=IPv4Network("198.51.100.0/25"), ipv6=IPv6Network("2001:db8:a::/64")
)
HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
REMOTE = {4: "192.0.2.2", 6: "2001:db8::2"}
C1 = {4: "198.51.100.2", 6: "2001:db8:a::2"}
C2 = {4: "198.51.100.3", 6: "2001:db8:a::3"}
GATEWAY = {4: "198.51.100.1", 6: "2001:db8:a::1"}
SILENCE = 0.2  # seconds without an answer that are taken for a drop
SPECS = "8080:80 8080:80/udp 8081:80"
LINKS = Links(bridges=frozenset({"ctrport0"}))

# What `reach` gives when all is well: who answered, and whom they saw.
OPEN: dict[str, object] = {
    "published tcp 4": ("c1", REMOTE[4]),
    "published udp 4": ("c1", REMOTE[4]),
    "published tcp 6": ("c1", REMOTE[6]),
    "published udp 6": ("c1", REMOTE[6]),
    "from the host": ("c1", GATEWAY[4]),
    "sibling by published port": ("c1", GATEWAY[4]),
    "sibling directly": ("c1", C2[4]),
    "egress 4": ("remote", HOST[4]),
    "egress 6": ("remote", HOST[6]),
    "unpublished port, directly": "closed",
    "published port, directly": "closed",
    "unpublished port of the host": "closed",
}


class FilteredSite:
    """The lab; `c1` serves 80 and is published as 8080 and 8081, the remote serves 9000 and the host 7000."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.lab = stack.enter_context(Lab(forwarding=False))
            self.host, self.remote = self.lab.host, self.lab.remote
            self.c1 = self._container(stack, "c1", C1[4])
            self.c2 = self._container(stack, "c2", C2[4])
            for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
                self.host.sysctl(f"net/bridge/{name}", 1)
            for ns in (self.host, self.remote, self.c1):
                ns.sysctl("net/ipv4/icmp_ratelimit", 0)
                ns.sysctl("net/ipv6/icmp/ratelimit", 0)
            for ns, port, proto in ((self.c1, 80, "tcp"), (self.c1, 80, "udp"), (self.remote, 9000, "tcp")):
                for family in (4, 6):
                    stack.enter_context(serve(ns, port, proto, family))  # type: ignore[arg-type]
            for port in (7000, 7001):
                stack.enter_context(serve(self.host, port))
            self.nft = self.host.call(LibNft)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _container(self, stack: contextlib.ExitStack, label: str, ipv4: str) -> Netns:
        name = f"ctrport-test-{os.getpid()}-filtered-{label}"
        stack.callback(netns.remove, name)
        lease = Lease(
            network=NETWORK.name,
            ipv4=NETWORK.ipv4[int(ip_address(ipv4)) - int(NETWORK.ipv4[0])],
            container=Key("test", label),
            netns=name,
            containerd="",
        )
        self.host.call(lambda: attach.connect(self._state, NETWORK, lease))
        return stack.enter_context(Netns.at(netns.DIRECTORY / name, label))

    def publish(self) -> None:
        """Apply our own table, and nothing to anybody else's."""
        ledger = Ledger()
        mappings, errors = ports.parse_list(SPECS)
        assert not errors
        endpoint = Endpoint(ipv4=ip_address(C1[4]), ipv6=ip_address(C1[6]))  # type: ignore[arg-type]
        ledger.put(Workload(key=Key("test", "c1"), created_at=1, requests=mappings, endpoint=endpoint))
        ledger.settle()
        bindings = [b for key in ledger.owners() for b in ledger.bindings(key)]
        self.nft.apply(ruleset.build(bindings, LINKS).rebuild())

    def ensure(self, links: Links = LINKS, **config: object) -> list[Obstacle]:
        """Let our packets pass other people's firewalls, as a full pass of the program does."""
        wanted = dataclasses.replace(Config(), **config)  # type: ignore[arg-type]
        return self.host.call(lambda: adjust.ensure(wanted, links))

    def ensure_as_the_service_may(self) -> str:
        """Do the same in a process with the capabilities of the systemd unit; gives what is still in the way."""
        code = (
            "from ctrport.config import Config; from ctrport.firewall.foreign import adjust\n"
            "from filtered import LINKS\n"
            "print(adjust.ensure(Config(), LINKS))"
        )
        return self.as_the_service_may(code)

    def as_the_service_may(self, code: str) -> str:
        """Run Python code on the host with the capabilities of the systemd unit, and give what it prints."""
        unit = (Path(__file__).parents[1] / "packaging/systemd/ctrport.service").read_text()
        (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
        capabilities = ",".join(["-all", *(f"+{c.removeprefix('CAP_').lower()}" for c in line.split())])
        code = f"import sys; sys.path[:0] = {sys.path!r}\n{code}"
        setpriv = ("setpriv", "--no-new-privs", f"--bounding-set={capabilities}")
        return self.host.run(*setpriv, sys.executable, "-c", code).stdout

    def diagnose(self) -> list[Obstacle]:
        return self.host.call(lambda: adjust.diagnose(Config(), LINKS))

    def flush(self) -> list[str]:
        """Take every rule of ours away, as `ctrport flush` does."""
        self.nft.apply(f"delete table {ruleset.ADDRESS}\n")
        return self.host.call(lambda: adjust.remove(Config(), LINKS.bridges))

    def reach(self) -> dict[str, object]:
        """Try every row; flows of an earlier look do not help."""
        self.host.run("conntrack", "-F", check=False)
        remote, rows = self.remote, dict[str, object]()
        for family in (4, 6):
            for proto in ("tcp", "udp"):
                rows[f"published {proto} {family}"] = seen(
                    ask(remote, HOST[family], 8080, proto, timeout=SILENCE)  # type: ignore[arg-type]
                )
        rows["from the host"] = seen(ask(self.host, "127.0.0.1", 8080, timeout=SILENCE))
        rows["sibling by published port"] = seen(ask(self.c2, HOST[4], 8080, timeout=SILENCE))
        rows["sibling directly"] = seen(ask(self.c2, C1[4], 80, timeout=SILENCE))
        for family in (4, 6):
            rows[f"egress {family}"] = seen(ask(self.c1, REMOTE[family], 9000, timeout=SILENCE))
        for row, address, port in (
            ("unpublished port, directly", C1[4], 81),
            ("published port, directly", C1[4], 80),
            ("unpublished port of the host", HOST[4], 8090),
        ):
            rows[row] = seen(ask(remote, address, port, timeout=SILENCE))
        return rows

    def rules(self) -> str:
        """Give all rules of all kinds as their own tools list them, without counts."""
        listed = [self.host.run("nft", "--stateless", "list", "ruleset").stdout]
        programs = ["iptables-nft-save", "ip6tables-nft-save"]
        for family, program in (("ip", "iptables-legacy-save"), ("ip6", "ip6tables-legacy-save")):
            if self.host.run("cat", f"/proc/net/{family}_tables_names").stdout:
                programs.append(program)
        listed += [self.host.run(program).stdout for program in programs]
        return re.sub(
            r"\[\d+:\d+\]|^# .* on .*$|counter packets \d+ bytes \d+", "", "".join(listed), flags=re.MULTILINE
        )


def seen(answer: Answer | Failure) -> object:
    """Give who answered and whom they saw, or "closed"."""
    return (answer.name, answer.peer[0]) if isinstance(answer, Answer) else "closed"


def dead(*rows: str, spared: str = "?") -> dict[str, object]:
    """Give what `reach` gives when the rows that begin so are closed, but for those that end in `spared`."""
    return {
        row: "closed" if row.startswith(rows) and not row.endswith(spared) else value for row, value in OPEN.items()
    }


def without_own_table(listing: str) -> str:
    """Give a listing of all rules without our own table: what a flush must leave."""
    start = listing.index("table inet ctrport {")
    return listing[:start] + listing[listing.index("\n}\n", start) + 3 :]


class HasHost(Protocol):
    """A site of whatever kind."""

    host: Netns


class Firewalld:
    """A real firewalld on the host, with a D-Bus and a configuration of its own."""

    BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
      "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
    <busconfig>
      <type>system</type>
      <listen>unix:path={socket}</listen>
      <auth>EXTERNAL</auth>
      <policy context="default">
        <allow user="*"/><allow own="*"/>
        <allow send_type="method_call"/><allow send_type="signal"/>
        <allow send_requested_reply="true" send_type="method_return"/>
        <allow send_requested_reply="true" send_type="error"/>
        <allow receive_type="method_call"/><allow receive_type="signal"/>
        <allow receive_type="method_return"/><allow receive_type="error"/>
      </policy>
    </busconfig>
    """

    def __init__(self, site: HasHost, directory: Path, *, backend: str = "nftables") -> None:
        self._site, self._directory = site, directory
        self.address = f"unix:path={directory / 'bus'}"
        self._environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.address}
        (directory / "bus.conf").write_text(self.BUS.format(socket=directory / "bus"))
        etc = directory / "etc-firewalld"
        etc.mkdir()
        shipped = Path("/etc/firewalld/firewalld.conf").read_text()
        (etc / "firewalld.conf").write_text(shipped.replace("Backend=nftables", f"Backend={backend}"))
        site.host.popen("dbus-daemon", f"--config-file={directory / 'bus.conf'}", "--nofork", "--nopidfile")
        until((directory / "bus").exists, what="a D-Bus")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        directory = self._directory
        self._process = self._site.host.popen(
            *("firewalld", "--nofork", "--nopid", "--system-config", directory / "etc-firewalld"),
            *("--log-file", directory / "log"),
            env=self._environment,
        )
        until(lambda: self("--state", check=False).startswith("running"), within=20, what="firewalld")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run firewall-cmd and give what it prints."""
        return self._site.host.run("firewall-cmd", *arguments, check=check, env=self._environment).stdout
