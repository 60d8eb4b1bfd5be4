"""Ports that somebody else's nat rules translate: not taken from them, told by name, and had once they are free.

Rules of kube-proxy, netavark, Docker with nftables and CNI portmap with nftables are written here in the form in
which those programs write them; Debian's portmap and netavark, which use iptables, are run below, and Docker in
`test_docker`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from ctrport.firewall import generation
from ctrport.firewall.foreign import programs, translations
from ctrport.firewall.generation import Generation
from ctrport.firewall.ruleset import ADDRESS
from ctrport.host.reservation import Reservation
from ctrport.reconcile import Reconciler
from filtered import OPEN, FilteredSite, seen
from lab import Answer, ask, serve

if TYPE_CHECKING:
    from pathlib import Path

    from lab import Netns
    from passes import Writer

HOST = "192.0.2.1"


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """Somebody's rules that send 8080 of the host to `b`: for nft, or for a program's restore."""

    holder: str
    script: str
    program: str = "nft"
    where: str = "8080/tcp"

    def load(self, writer: Writer) -> None:
        if self.program == "nft":
            writer.lab.host.nft(self.script)
        else:
            writer.lab.host.run(f"{self.program}-restore", "--noflush", input=self.script)

    def unload(self, writer: Writer) -> None:
        host = writer.lab.host
        if self.program == "nft":
            host.nft(f"delete table {self.script.split()[1]} {self.script.split()[2]}")
        else:
            host.run(self.program, "-t", "nat", "-F")


KUBE_PROXY_IPTABLES = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-EXT-WEB - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-SEP-ONE - [0:0]
:KUBE-SEP-TWO - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 203.0.113.7/32 -p tcp -m comment --comment "a/web IP" -m tcp --dport 8081 -j KUBE-SVC-WEB
-A KUBE-SERVICES ! -d 127.0.0.0/8 -m comment --comment "last rule" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "a/web" -m tcp --dport 8080 -j KUBE-EXT-WEB
-A KUBE-EXT-WEB -m comment --comment "masquerade traffic for a/web" -j KUBE-MARK-MASQ
-A KUBE-EXT-WEB -j KUBE-SVC-WEB
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SVC-WEB -m comment --comment "a/web" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-ONE
-A KUBE-SVC-WEB -m comment --comment "a/web" -j KUBE-SEP-TWO
-A KUBE-SEP-ONE -s 198.51.100.3/32 -m comment --comment "a/web" -j KUBE-MARK-MASQ
-A KUBE-SEP-ONE -p tcp -m comment --comment "a/web" -m tcp -j DNAT --to-destination 198.51.100.3:80
-A KUBE-SEP-TWO -p tcp -m comment --comment "a/web" -m tcp -j DNAT --to-destination 198.51.100.3:80
COMMIT
"""
KUBE_PROXY_NFT = """table ip kube-proxy {
    comment "rules for kube-proxy"
    set nodeport-ips { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.10 }; }
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = { 203.0.113.7 . tcp . 8081 : goto service-web }
    }
    map service-nodeports {
        type inet_proto . inet_service : verdict
        elements = { tcp . 8080 : goto external-web }
    }
    chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
    chain endpoint-one {
        ip saddr 198.51.100.3 jump mark-for-masquerade
        meta l4proto tcp dnat to 198.51.100.3:80
    }
    chain service-web { numgen random mod 1 vmap { 0 : goto endpoint-one }; }
    chain external-web {
        jump mark-for-masquerade
        goto service-web
    }
    chain services {
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }
}
"""
NETAVARK_NFT = """table inet netavark {
    chain PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump NETAVARK-HOSTPORT-DNAT
    }
    chain NETAVARK-HOSTPORT-SETMARK { meta mark set meta mark | 0x00002000; }
    chain NETAVARK-HOSTPORT-DNAT { tcp dport 8080 jump nv_web_dnat; }
    chain nv_web_dnat {
        ip saddr 198.51.100.0/24 tcp dport 8080 jump NETAVARK-HOSTPORT-SETMARK
        ip saddr 127.0.0.1 tcp dport 8080 jump NETAVARK-HOSTPORT-SETMARK
        tcp dport 8080 dnat ip to 198.51.100.3:80
    }
}
"""
NETAVARK_IPTABLES = """*nat
:NETAVARK-HOSTPORT-DNAT - [0:0]
:NETAVARK-HOSTPORT-SETMARK - [0:0]
:NETAVARK-DN-WEB - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT
-A NETAVARK-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -m comment --comment "dnat id: 1" -j NETAVARK-DN-WEB
-A NETAVARK-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
-A NETAVARK-DN-WEB -s 198.51.100.0/24 -p tcp -m tcp --dport 8080 -j NETAVARK-HOSTPORT-SETMARK
-A NETAVARK-DN-WEB -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.51.100.3:80
COMMIT
"""
DOCKER_NFT = """table ip docker-bridges {
    chain nat-PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump nat-prerouting-and-output
    }
    chain nat-prerouting-and-output {
        iifname != "docker0" tcp dport 8080 counter dnat to 198.51.100.3:80 comment "DNAT"
    }
}
"""
PORTMAP_NFT = """table ip cni_hostport {
    comment "CNI portmap plugin"
    chain hostports { tcp dport 8080 dnat to 198.51.100.3:80 comment "id1"; }
    chain hostip_hostports { ip daddr 203.0.113.9 tcp dport 8081 dnat to 198.51.100.3:80 comment "id1"; }
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump hostip_hostports
        jump hostports
    }
}
"""
BY_HAND = "table inet mine {{ chain p {{ type nat hook prerouting priority dstnat; {}; }}; }}"
AS_IPTABLES = "table ip nat {{ chain PREROUTING {{ type nat hook prerouting priority -100; {}; }}; }}"
BY_HAND_IPTABLES = "*nat\n-A PREROUTING {}\nCOMMIT\n"
TO_B = "-j DNAT --to-destination 198.51.100.3:80"

FOREIGN = {
    "kube-proxy, iptables": Rules(
        "kube-proxy (chain KUBE-NODEPORTS of iptables nat)", KUBE_PROXY_IPTABLES, "iptables-nft"
    ),
    "kube-proxy, nftables": Rules(
        "kube-proxy (nftables table ip kube-proxy)", KUBE_PROXY_NFT, where=f"{HOST}:8080/tcp"
    ),
    "netavark, iptables": Rules(
        "netavark (chain NETAVARK-HOSTPORT-DNAT of iptables nat)", NETAVARK_IPTABLES, "iptables-nft"
    ),
    "netavark, nftables": Rules("netavark (nftables table inet netavark)", NETAVARK_NFT),
    "Docker, nftables": Rules("Docker (nftables table ip docker-bridges)", DOCKER_NFT),
    "CNI portmap, nftables": Rules("CNI portmap (nftables table ip cni_hostport)", PORTMAP_NFT),
    "by hand, iptables": Rules(
        "chain PREROUTING of iptables nat",
        BY_HAND_IPTABLES.format(f"-i eth0 -p tcp -m tcp --dport 8079:8080 {TO_B}"),
        "iptables-nft",
    ),
    "by hand, legacy": Rules(
        "chain PREROUTING of iptables-legacy nat",
        BY_HAND_IPTABLES.format(f"-p tcp -m multiport --dports 443,8080 {TO_B}"),
        "iptables-legacy",
    ),
    "by hand, one address": Rules(
        "chain PREROUTING of iptables nat",
        BY_HAND_IPTABLES.format(f"-d 192.0.2.1/32 -p tcp -m tcp --dport 8080 {TO_B}"),
        "iptables-nft",
        where=f"{HOST}:8080/tcp",
    ),
    "by hand, nftables": Rules(
        "nftables table inet mine", BY_HAND.format("tcp dport { 443, 8000-8080 } dnat ip to 198.51.100.3:80")
    ),
    "by hand, map": Rules(
        "nftables table inet mine",
        BY_HAND.format("dnat ip addr . port to tcp dport map { 8080 : 198.51.100.3 . 80 }"),
    ),
    "by hand, verdict map": Rules(
        "nftables table inet mine",
        "table inet mine { chain b { meta l4proto tcp dnat ip to 198.51.100.3:80; }; chain p { "
        "type nat hook prerouting priority dstnat; tcp dport vmap { 22 : accept, 8080 : jump b }; }; }",
    ),
    "nft in the table of iptables": Rules(
        "nftables table ip nat", AS_IPTABLES.format("tcp dport 8080 dnat to 198.51.100.3:80")
    ),
}
every_foreigner = pytest.mark.parametrize("rules", FOREIGN.values(), ids=FOREIGN)

HARMLESS = {
    "another address's": Rules(
        "", BY_HAND_IPTABLES.format(f"-d 203.0.113.9/32 -p tcp --dport 8080 {TO_B}"), "iptables-nft"
    ),
    "a transparent proxy": Rules(
        "", BY_HAND_IPTABLES.format("-i br9 -p tcp -j REDIRECT --to-ports 3128"), "iptables-nft"
    ),
    "one client's": Rules(
        "", BY_HAND_IPTABLES.format(f"-s 203.0.113.9 -p tcp --dport 8080 {TO_B}"), "iptables-nft"
    ),
    "udp": Rules("", BY_HAND_IPTABLES.format(f"-p udp --dport 8080 {TO_B}"), "iptables-legacy"),
    "all but one port": Rules(
        "", BY_HAND_IPTABLES.format(f"-p tcp ! --dport 22 -d 203.0.113.9 {TO_B}"), "iptables-nft"
    ),
    "nft, another address": Rules(
        "", BY_HAND.format("ip daddr 203.0.113.9 tcp dport 8080 dnat ip to 198.51.100.3:80")
    ),
    "nft, one client": Rules("", BY_HAND.format("ip saddr 203.0.113.9 tcp dport 8080 dnat ip to 198.51.100.3:80")),
    "nft, a mark": Rules("", BY_HAND.format("meta mark 0x77 tcp dport 8080 dnat ip to 198.51.100.3:80")),
    "nft, behind an accept": Rules("", BY_HAND.format("counter accept; tcp dport 8080 dnat ip to 198.51.100.3:80")),
}


def answers(writer: Writer, port: int, address: str = HOST) -> str:
    """Give who answers the remote on a port of the host."""
    answer = ask(writer.lab.remote, address, port, timeout=0.5)
    return answer.name if isinstance(answer, Answer) else str(answer)


@every_foreigner
def test_a_translated_port_waits_until_it_is_free(writer: Writer, rules: Rules):
    """Theirs stays theirs and is told by name, another port answers beside it, and the first is had afterwards."""
    rules.load(writer)
    assert answers(writer, 8080) == "b"
    writer.publish("a", "8080:80 8081:80")
    assert writer.states("a") == [
        ("waiting", f"{rules.where} is translated by {rules.holder}"),
        ("active", ""),
    ]
    assert (answers(writer, 8080), answers(writer, 8081)) == ("b", "a")
    rules.unload(writer)
    writer.wait(writer.reconciler.resync())
    assert writer.states("a") == [("active", ""), ("active", "")]
    assert answers(writer, 8080) == "a"


@pytest.mark.parametrize("rules", HARMLESS.values(), ids=HARMLESS)
def test_rules_that_are_about_something_else(writer: Writer, rules: Rules):
    """Another destination, protocol or client keeps nobody from a port."""
    rules.load(writer)
    writer.publish("a", "8080:80")
    assert writer.states("a") == [("active", "")]
    assert answers(writer, 8080) == "a"


def test_each_family_for_itself(writer: Writer):
    """A port that is translated in IPv6 alone is free on an IPv4 address, and on one more of another protocol."""
    writer.lab.host.nft(
        "table ip6 kube-proxy { chain p { type nat hook prerouting priority dstnat; "
        "tcp dport 8080 dnat to [2001:db8:a::3]:80; }; }"
    )
    writer.publish("a", "0.0.0.0:8080:80 [::]:8080:80 8080:80/udp")
    assert writer.states("a") == [
        ("active", ""),
        ("waiting", "8080/tcp is translated by kube-proxy (nftables table ip6 kube-proxy)"),
        ("active", ""),
    ]
    assert (answers(writer, 8080), answers(writer, 8080, "2001:db8::1")) == ("a", "b")


def test_an_automatic_port_steps_aside(writer: Writer):
    """Of a range the first port is taken that nobody translates."""
    FOREIGN["by hand, legacy"].load(writer)
    writer.publish("a", "8080-8081:80")
    assert [b.host_port for b in writer.reconciler.bindings(writer.key("a"))] == [8081]


@every_foreigner
def test_who_was_served_keeps_the_port(writer: Writer, rules: Rules, caplog: pytest.LogCaptureFixture):
    """A rule that comes later does not take a port away, nor does a new writer; the overlap is told."""
    writer.publish("a", "8080:80")
    rules.load(writer)
    writer.wait(writer.reconciler.resync())
    assert writer.states("a") == [("active", "")]
    ledger = writer.reconciler.ledger
    assert ledger is not None
    expected = [f"{rules.where} is translated by {rules.holder}"]
    if rules.where == f"{HOST}:8080/tcp" and "kube" in rules.holder:
        expected.append(expected[0].replace(HOST, "192.0.2.10"))
    assert [listener.reason() for _, listener in ledger.overlaps()] == expected
    writer.wait(writer.reconciler.resync())
    told = [r.getMessage() for r in caplog.records if "the rule that stands first answers" in r.getMessage()]
    assert told == [
        f"default/a 8080/tcp -> 198.51.100.2 and 2001:db8:a::2 port 80 is published, and {reason} too: "
        "the rule that stands first answers"
        for reason in expected
    ]
    before = writer.reconciler
    next_writer = Reconciler(before.settings, before.snapshot._client, before.kernel.nft, Reservation())
    try:
        writer.wait(next_writer.resync())
        assert [str(b.state) for b in next_writer.bindings(writer.key("a"))] == ["active"]
    finally:
        assert next_writer._claims._reservation is not None
        next_writer._claims._reservation.close()


# --------------------------------------------------------------------------------- when others' rules are read


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the programs that are started from here on."""
    started: list[str] = []
    run = programs.run

    def noted(*argv: str, script: str | None = None) -> str:
        started.append(argv[0])
        return run(*argv, script=script)

    monkeypatch.setattr(programs, "run", noted)
    return started


def test_ones_own_changes_cost_no_process(writer: Writer, processes: list[str], caplog: pytest.LogCaptureFixture):
    """As long as nobody else changes rules, refreshes start no program; after that the next one reads them once."""
    writer.publish("a", "8081:80")  # which lets its interface pass other firewalls, by their programs
    writer.publish("a", "8081:80 8084:80")
    processes.clear()
    writer.publish("a", "8081:80 8082:80")
    writer.publish("b", "8083:80")
    writer.end("b")
    assert processes == []
    FOREIGN["by hand, nftables"].load(writer)
    writer.publish("b", "8080:80")
    assert writer.states("b")[0][0] == "waiting"
    assert processes != []
    processes.clear()
    writer.publish("b", "8080:80 8084:80")
    assert processes == []
    assert "making a full pass" not in caplog.text, "as our own rules stand"


def test_where_rules_are_many_only_full_passes_read_them_again(
    writer: Writer, processes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """After a look that took long, refreshes go by what it has found for a while."""
    monkeypatch.setattr(translations, "SLOW", 0.0)
    monkeypatch.setattr(translations, "REST", 1e6)
    FOREIGN["by hand, nftables"].load(writer)
    writer.publish("a", "8081:80")
    writer.publish("a", "8081:80 8080:80")
    assert writer.states("a")[1][0] == "waiting"
    writer.lab.host.nft("table ip kube-proxy { chain p { }; }")
    processes.clear()
    writer.publish("b", "8082:80")
    assert processes == []
    writer.wait(writer.reconciler.resync())
    assert processes != []


def test_a_new_rule_of_legacy_is_seen_at_once(writer: Writer):
    """Its table counts no changes; that it has grown is seen."""
    host = writer.lab.host
    host.run("iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "1", "-j", "ACCEPT")
    writer.wait(writer.reconciler.resync())
    FOREIGN["by hand, legacy"].load(writer)
    writer.publish("a", "8080:80")
    assert writer.states("a") == [("waiting", "8080/tcp is translated by chain PREROUTING of iptables-legacy nat")]


def test_a_rule_of_legacy_that_was_replaced_is_seen_by_a_full_pass(writer: Writer):
    """The table is as large as before, so only a full pass, which reads it in any case, tells."""
    rule = ("-t", "nat", "-R", "PREROUTING", "1", "-p", "tcp", "--dport")
    target = ("-j", "DNAT", "--to-destination", "198.51.100.3:80")
    writer.lab.host.run("iptables-legacy", "-t", "nat", "-A", "PREROUTING", *rule[5:], "8090", *target)
    writer.publish("b", "8080:80")
    writer.wait(writer.reconciler.resync())
    writer.lab.host.run("iptables-legacy", *rule, "8080", *target)
    writer.wait(writer.reconciler.resync())
    assert writer.reconciler.ledger is not None
    assert [listener.port for _, listener in writer.reconciler.ledger.overlaps()] == [8080]


def test_what_cannot_be_read_is_told_once(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A program that fails keeps nobody from a port, and the log says so one time."""
    FOREIGN["by hand, iptables"].load(writer)
    monkeypatch.setattr(programs, "PATH", "/nonexistent")
    writer.publish("a", "8080:80")
    writer.wait(writer.reconciler.resync())
    told = [r.getMessage() for r in caplog.records if "cannot see all that others translate" in r.getMessage()]
    assert told == ["cannot see all that others translate: nft is not installed"]
    assert writer.states("a") == [("active", "")]


# ------------------------------------------------------------------------------------------- the generation


def test_the_generation_tells_others_from_oneself(writer: Writer):
    """One's own transaction changes nothing, an empty one neither, anybody else's does."""
    host, mine = writer.lab.host, Generation()
    host.nft("table ip t { set s { type ipv4_addr; }; }")
    before = host.call(mine.foreign)

    def own(script: str) -> None:
        def work() -> None:
            with mine.own():
                writer.reconciler.kernel.nft.apply(script)

        host.call(work)

    for _ in range(2):
        own("add element ip t s { 192.0.2.7 }\n")
    assert host.call(mine.foreign) == before
    host.nft("add element ip t s { 192.0.2.8 }")
    assert host.call(mine.foreign) != before


def test_the_generation_counts_each_transaction_of_every_program(writer: Writer):
    """Nft's and iptables-nft's."""
    host = writer.lab.host
    first = host.call(generation.read)
    host.nft("table ip t { chain c { }; }")
    host.run("iptables-nft", "-t", "nat", "-N", "MINE")
    assert host.call(generation.read) == first + 2


@pytest.mark.parametrize(
    "harm",
    [
        "flush ruleset",
        f"delete table {ADDRESS}",
        f"flush chain {ADDRESS} publish",
        f"insert rule {ADDRESS} forward drop",
        f"table {ADDRESS} {{ flags dormant; }}",
    ],
)
def test_an_event_after_a_foreign_change_mends_all(writer: Writer, harm: str):
    """The next refresh, though it has nothing to write, finds our rules changed and puts all back."""
    writer.publish("a", "8080:80")
    writer.publish("b", "8081:80")
    writer.lab.host.nft(harm)
    assert answers(writer, 8080) != "a"
    writer.publish("b", "8081:80")
    assert (answers(writer, 8080), answers(writer, 8081)) == ("a", "b")


# ----------------------------------------------------------------------------------------- CNI portmap itself


POD = ("198.51.100.3/24", "2001:db8:a::3/64")  # which is `b`


def portmap(
    host: Netns, command: str, *, port: int = 8080, host_ip: str = "", addresses: tuple[str, ...] = POD
) -> None:
    """Call Debian's portmap for port 80 of a container."""
    mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp", **({"hostIP": host_ip} if host_ip else {})}
    config = {
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "portmap",
        "runtimeConfig": {"portMappings": [mapping]},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/b"}],
            "ips": [{"address": address, "interface": 0} for address in addresses],
        },
    }
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "pod-b",
        "CNI_NETNS": "/run/netns/b",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    host.run("/usr/lib/cni/portmap", input=json.dumps(config), env=environment)


def test_beside_portmap(writer: Writer):
    """A pod's hostPort keeps answering, our port beside it too, and ours is had when the pod goes."""
    portmap(writer.lab.host, "ADD")
    writer.publish("a", "8080:80 8081:80")
    reason = "8080/tcp is translated by CNI portmap (chain CNI-HOSTPORT-DNAT of iptables nat)"
    assert writer.states("a") == [("waiting", reason), ("active", "")]
    for address in (HOST, "2001:db8::1"):
        assert (answers(writer, 8080, address), answers(writer, 8081, address)) == ("b", "a")
    portmap(writer.lab.host, "DEL")
    writer.wait(writer.reconciler.resync())
    assert writer.states("a") == [("active", ""), ("active", "")]
    assert (answers(writer, 8080), answers(writer, 8081)) == ("a", "a")


def test_beside_portmap_on_one_address(writer: Writer):
    """A hostPort with a hostIP keeps that address's port alone."""
    portmap(writer.lab.host, "ADD", host_ip="192.0.2.10")
    writer.publish("a", "192.0.2.1:8080:80 192.0.2.10:8080:80")
    reason = "192.0.2.10:8080/tcp is translated by CNI portmap (chain CNI-HOSTPORT-DNAT of iptables nat)"
    assert writer.states("a") == [("active", ""), ("waiting", reason)]
    assert (answers(writer, 8080, "192.0.2.1"), answers(writer, 8080, "192.0.2.10")) == ("a", "b")


def test_the_contract_beside_portmap(tmp_path: Path):
    """Every row of it holds, the pod's port answers before, with and after us, and a flush leaves its rules."""
    with FilteredSite(tmp_path / "state") as site:
        site.lab.bridge("cni0", "203.0.113.1/24", "2001:db8:c::1/64")
        addresses = ("203.0.113.2/24", "2001:db8:c::2/64")
        pod = site.lab.container_like("pod", "cni0", *addresses, gateway4="203.0.113.1", gateway6="2001:db8:c::1")
        portmap(site.host, "ADD", port=7080, addresses=addresses)
        before, expected = site.rules(), [("pod", "192.0.2.2"), ("pod", "2001:db8::2")]
        assert "CNI-HOSTPORT-DNAT" in before

        def answered() -> list[object]:
            return [seen(ask(site.remote, address, 7080)) for address in (HOST, "2001:db8::1")]

        with serve(pod, 80), serve(pod, 80, family=6):
            assert answered() == expected
            site.publish()
            assert site.ensure() == []
            assert site.reach() == OPEN
            assert answered() == expected
            site.flush()
            assert site.rules() == before
            assert answered() == expected


# -------------------------------------------------------------------------------------------- netavark itself


def test_beside_netavark(writer: Writer, tmp_path: Path):
    """A port that podman's netavark publishes keeps answering, ours beside it too, and ours is had when it goes."""
    name = {"container_id": "pod-1", "container_name": "pod"}
    network = {
        "name": "podman",
        "id": "ab" * 32,
        "driver": "bridge",
        "network_interface": "podman0",
        "subnets": [{"subnet": "203.0.113.0/24", "gateway": "203.0.113.1"}],
        "ipv6_enabled": False,
        "internal": False,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
    }
    request = {
        **name,
        "networks": {"podman": {"static_ips": ["203.0.113.2"], "interface_name": "eth0"}},
        "network_info": {"podman": network},
        "port_mappings": [{"host_ip": "", "container_port": 80, "host_port": 8080, "range": 1, "protocol": "tcp"}],
    }
    pod = writer.lab.netns("pod")

    def netavark(command: str) -> None:
        program = ("/usr/lib/podman/netavark", "--config", tmp_path / "netavark")
        writer.lab.host.run(*program, command, pod.path, input=json.dumps(request))

    netavark("setup")
    with serve(pod, 80):
        writer.publish("a", "8080:80 8081:80")
        reason = "8080/tcp is translated by netavark (chain NETAVARK-HOSTPORT-DNAT of iptables nat)"
        assert writer.states("a") == [("waiting", reason), ("active", "")]
        assert (answers(writer, 8080), answers(writer, 8081)) == ("pod", "a")
    netavark("teardown")
    writer.wait(writer.reconciler.resync())
    assert writer.states("a") == [("active", ""), ("active", "")]
    assert (answers(writer, 8080), answers(writer, 8081)) == ("a", "a")
