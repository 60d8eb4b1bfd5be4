"""Other people's firewalls, one class each: how they come on a host, and what they decide by themselves.

Each lets somebody else's traffic through the host from `eth0` to `eth1` and not back, and keeps the host's own
services but for port 7000 closed or at least 7001: whatever ctrport does beside it, these are theirs to say.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from contract import CLOSED
from filtered import Firewalld
from lab import TIMEOUT

if TYPE_CHECKING:
    from contract import ContractSite, Expected
    from lab import Netns

PAGE = Path(__file__).parents[1] / "docs" / "firewalls.md"


class Firewall:
    """None at all; the others are made from it."""

    config = ""  # for config.toml
    flushes_everything = False  # when it is loaded, rules of others included
    # Rows of the contract that are this firewall's to decide.
    decides: ClassVar[Expected] = {}

    def __init__(self, site: ContractSite, directory: Path) -> None:
        """Install it; none of ours is there yet."""
        self.site, self.directory = site, directory
        self.install()

    def install(self) -> None:
        """Bring it up on the host."""
        self.load()

    def load(self) -> None:
        """Load its rules, for the first time or anew."""

    def settle(self) -> None:
        """Have it forget what it keeps by itself of rules that are gone."""


class DroppingInput(Firewall):
    """Whoever asks for a port that is not open hears nothing, and so for one that is not published."""

    decides: ClassVar[Expected] = {
        "far -> somebody else's 8080*": TIMEOUT,
        "remote -> host's closed service*": TIMEOUT,
        "remote -> not published*": TIMEOUT,
        "remote -> published on 127.0.0.1 alone*": TIMEOUT,
        "remote -> published on one address, elsewhere*": TIMEOUT,
        "c? -> published on 127.0.0.1 alone*": TIMEOUT,
    }


class Iptables(Firewall):
    """FORWARD drops by its policy; INPUT accepts but for one port."""

    backend = "nft"
    decides: ClassVar[Expected] = {
        "far -> somebody else's 8080*": TIMEOUT,
        "remote -> host's closed service*": TIMEOUT,
    }
    RULES = """
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -p tcp --dport 7001 -j DROP
-A INPUT -p udp --dport 7001 -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth0 -o eth1 -j ACCEPT
COMMIT
"""

    def load(self) -> None:
        """As netfilter-persistent does."""
        for family, icmp in (("ip", "icmp"), ("ip6", "ipv6-icmp")):
            program = f"{family}tables-{self.backend}-restore"
            self.site.host.run(program, input=self.RULES.replace("ICMP", icmp))


class IptablesLegacy(Iptables):
    """FORWARD and INPUT drop by their policies, in the kernel's old tables."""

    backend = "legacy"
    decides = DroppingInput.decides
    RULES = """
*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ICMP -j ACCEPT
-A INPUT -p tcp --dport 7000 -j ACCEPT
-A INPUT -p udp --dport 7000 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth0 -o eth1 -j ACCEPT
COMMIT
"""


class Native(DroppingInput):
    """A hand-written /etc/nftables.conf that begins with `flush ruleset`, as Debian's example does."""

    config = "adjust_nftables = true\n"
    flushes_everything = True
    RULES = """
    flush ruleset
    table inet filter {
        chain input {
            type filter hook input priority filter; policy drop
            iif lo accept
            ct state established,related accept
            meta l4proto { icmp, ipv6-icmp } accept
            meta l4proto { tcp, udp } th dport 7000 accept
        }
        chain forward {
            type filter hook forward priority filter; policy drop
            ct state established,related accept
            iifname "eth0" oifname "eth1" accept
        }
    }
    """

    def load(self) -> None:
        self.site.host.nft(self.RULES)


class Ufw:
    """Real ufw, with its own copy of /etc/ufw: in a mount namespace for each call."""

    def __init__(self, host: Netns, directory: Path) -> None:
        self._host, self._etc = host, directory / "etc-ufw"
        subprocess.run(["cp", "-a", "/etc/ufw", self._etc], check=True)

    def __call__(self, *arguments: str) -> str:
        script = f"mount --bind {self._etc} /etc/ufw && exec ufw {' '.join(arguments)}"
        return self._host.run("unshare", "--mount", "sh", "-c", script, timeout=60).stdout


class UfwEnabled(DroppingInput):
    """ufw as it comes, with one port open and one route."""

    def install(self) -> None:
        self._ufw = Ufw(self.site.host, self.directory)
        self._ufw("allow", "7000")
        self._ufw("route", "allow", "in", "on", "eth0", "out", "on", "eth1")
        self._ufw("--force", "enable")

    def load(self) -> None:
        self._ufw("reload")


class FirewalldEnabled(Firewall):
    """Real firewalld with a D-Bus of its own: one port open, and a policy from one zone to another."""

    # It rejects, but the kernel forgets about it if the word comes while `connect` is still at work (tcp_v6_err).
    decides: ClassVar[Expected] = {row: CLOSED for row in DroppingInput.decides if not row.startswith("c")}

    def install(self) -> None:
        self._firewalld = Firewalld(self.site, self.directory)
        self.site.cli.environment["DBUS_SYSTEM_BUS_ADDRESS"] = self._firewalld.address
        for arguments in (
            "--zone=public --add-interface=eth0",
            "--zone=public --add-port=7000/tcp --add-port=7000/udp",
            "--zone=dmz --add-interface=eth1",
            "--new-policy=transit",
            "--policy=transit --add-ingress-zone=public",
            "--policy=transit --add-egress-zone=dmz",
            "--policy=transit --set-target=ACCEPT",
        ):
            self._firewalld("--permanent", *arguments.split())
        self.load()

    def load(self) -> None:
        self._firewalld("--reload")

    def settle(self) -> None:
        self.load()  # it keeps empty chains for each zone that was ever used


FIREWALLS: dict[str, type[Firewall]] = {
    "none": Firewall,
    "iptables-nft": Iptables,
    "iptables-legacy": IptablesLegacy,
    "ufw": UfwEnabled,
    "firewalld": FirewalldEnabled,
    "native": Native,
}


def recipe(host: Netns, title: str, changed: dict[str, str] | None = None) -> None:
    """Run the command of a chapter of docs/firewalls.md, as it stands there but for a word."""
    chapter = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    (command,) = re.findall(r"^nft add rule .*$", chapter, re.MULTILINE)
    for old, new in (changed or {}).items():
        assert old in command
        command = command.replace(old, new)
    host.run(*shlex.split(command))
