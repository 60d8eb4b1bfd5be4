"""The parts of doctor that touch nothing: targets, tables of sockets, judgements by numbers, places of codes."""

from __future__ import annotations

import contextlib
import re
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given

from ctrport.doctor import inside, kernel, limits, mappings
from ctrport.doctor.finding import Code, Finding, Severity, in_order
from ctrport.doctor.inside import Open
from ctrport.doctor.journey import Journey, Outcome, Passed, Stage, Target, parse
from ctrport.errors import InputError
from ctrport.firewall.nftrace import MESSAGE_TRACE, Step, read
from ctrport.host.netlink import attribute
from ctrport.model.bindings import Binding, State
from ctrport.model.ports import Protocol, parse_list
from ctrport.model.workload import Key
from strategies import hostile_text

PAGE = Path(__file__).parents[2] / "docs" / "firewalls.md"
WEB = Key("default", "web")


def finding(code: Code = Code.DRIFT, severity: Severity = Severity.SERIOUS) -> Finding:
    return Finding(code=code, severity=severity, what="x")


def test_every_code_has_its_place_in_the_docs():
    """docs/firewalls.md has one row for each code, and none for a code that there is not."""
    table = PAGE.read_text().partition("## The findings of doctor")[2]
    named = re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(str(code) for code in Code)


def test_serious_findings_come_first_and_once():
    """Within one severity they stay in the order of the checks."""
    note, drift = finding(Code.NO_WATCHER, Severity.NOTE), finding()
    other = finding(Code.IP_FORWARD_OFF)
    assert in_order([note, drift, other, drift]) == (drift, other, note)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("8080", Target(port=8080)),
        ("53/udp", Target(port=53, protocol=Protocol.UDP)),
        ("192.0.2.1:80", Target(port=80, host_ip=ip_address("192.0.2.1"))),
        ("[2001:db8::1]:80/sctp", Target(port=80, protocol=Protocol.SCTP, host_ip=ip_address("2001:db8::1"))),
        ("2001:db8::1:80", Target(port=80, host_ip=ip_address("2001:db8::1"))),
    ],
)
def test_targets(text: str, target: Target):
    """A port as people write it, and printed so that it can be read again."""
    assert parse(text) == target
    assert parse(str(target)) == target


@given(hostile_text())
def test_any_text_is_a_target_or_an_error(text: str):
    """Nothing but InputError comes of what is typed."""
    with contextlib.suppress(InputError):
        assert 1 <= parse(text).port <= 65535


@pytest.mark.parametrize(
    ("target", "spec", "taken"),
    [
        ("8080", "8080:80", True),
        ("8080/udp", "8080:80", False),
        ("8080", "127.0.0.1:8080:80", True),
        ("192.0.2.1:8080", "8080:80", True),
        ("192.0.2.1:8080", "0.0.0.0:8080:80", True),
        ("[2001:db8::1]:8080", "0.0.0.0:8080:80", False),
        ("192.0.2.1:8080", "192.0.2.2:8080:80", False),
        ("8003", "8000-8005:80", True),
        ("8080", "80", False),
    ],
)
def test_whether_a_mapping_is_meant(target: str, spec: str, taken: bool):  # noqa: FBT001 - a table
    """By port, protocol, family and address; one of a pool without a port yet by its pool."""
    ((mapping, *_), _) = parse_list(spec)
    binding = Binding(owner=WEB, mapping=mapping, host_port=mapping.host_port, state=State.WAITING)
    assert parse(target).takes(binding) is taken


TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0200D00A:0050 0200000A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
"""
TCP6 = """  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: B80D0120000000000000000001000000:0052 00000000000000000000000000000000:0000 0A 00000000:00000000
"""


def test_what_listens_in_a_container():
    """Sockets in LISTEN, connections left out, mapped addresses as what they are."""
    assert list(inside.parse(TCP, "0A")) == [Open(ip_address("127.0.0.1"), 8080)]
    found = list(inside.parse(TCP6, "0A"))
    assert found == [
        Open(ip_address("::"), 80),
        Open(ip_address("127.0.0.1"), 81),
        Open(ip_address("2001:db8::1"), 82),
    ]
    assert [[f for f in (4, 6) if one.serves(f)] for one in found] == [[4, 6], [], [6]]


@pytest.mark.parametrize(
    ("release", "old"),
    [("5.6.19-generic", True), ("5.7.0", False), ("5.10.0-28-amd64", False), ("6.18", False), ("4.19.0", True)],
)
def test_kernels(release: str, old: bool):  # noqa: FBT001 - a table
    """Older than 5.7 is too old: `iifname` in postrouting."""
    assert [f.code for f in kernel.too_old(release)] == [Code.KERNEL_TOO_OLD] * old


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("nftables v1.0.6 (Lester Gooch #5)\n", False),
        ("nftables v1.1.3 (Commodore Bullmoose #4)\n", False),
        ("nftables v0.9.8 (E.D.S.)\n", True),
        ("nftables v1.0.2 (Lester Gooch)\n", True),
    ],
)
def test_versions_of_nftables(version: str, old: bool):  # noqa: FBT001 - a table
    """Older than 1.0.6 was never tried: a warning, as the kernel was asked already whether it takes the rules."""
    assert [(f.code, f.severity) for f in kernel.untried(version)] == [(Code.NFTABLES_OLD, Severity.WARNING)] * old


@pytest.mark.parametrize(
    ("word", "lacking"),
    [
        ("fib", ["nft_fib_inet"]),
        ("masquerade", ["nft_masq"]),
        ("type nat", ["nft_chain_nat", "nft_nat", "nft_masq"]),
        ("table", ["nf_tables"]),
        ("nothing by itself", []),
    ],
)
def test_what_the_kernel_lacks(word: str, lacking: list[str]):
    """A kernel without a part refuses whatever uses it; the modules to load are named."""

    def refusal(script: str) -> str:
        whole = "chain publish" in script
        return "Error: Not supported" if word in script or (word == "nothing by itself" and whole) else ""

    (found,) = kernel.missing(refusal)
    assert found.code is Code.KERNEL_FEATURE_MISSING
    assert found.fix == ((f"modprobe -a {' '.join(lacking)}",) if lacking else ())


def test_a_kernel_that_lacks_nothing():
    """No refusal, no finding."""
    assert list(kernel.missing(lambda _: "")) == []


@pytest.mark.parametrize(
    ("count", "most", "full"),
    [
        ("899", "1000", False),
        ("900", "1000", True),
        ("1000", "1000", True),
        (None, "1000", False),
        ("5", "0", False),
    ],
)
def test_a_full_table_of_connections(count: str | None, most: str, full: bool):  # noqa: FBT001 - a table
    """From nine tenths on new connections are in danger."""
    found = list(limits.connections(count, most))
    assert [f.code for f in found] == [Code.CONNTRACK_FULL] * full
    assert [f.fix for f in found] == [("sysctl -w net.netfilter.nf_conntrack_max=2000",)] * full


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("8080/tcp is held by container k8s.io/a", ("ctrport -n k8s.io stop a", "ctrport sync")),
        ("0.0.0.0:8080/tcp is held by nginx (pid 811)", ("ps -fp 811", "kill 811", "ctrport sync")),
        (
            "8080/tcp is held by a process that has bound it",
            ("ss -lnp 'sport >= :8080 and sport <= :8080'", "ctrport sync"),
        ),
    ],
)
def test_ways_out_of_a_conflict(reason: str, fix: tuple[str, ...]):
    """By the ledger's own words about who has the port."""
    ((mapping,), _) = parse_list("8080:80")
    binding = Binding(owner=WEB, mapping=mapping, host_port=8080, state=State.WAITING, reason=reason)
    assert mappings.unserved(binding).fix == fix


def event(**parts: bytes) -> bytes:
    kinds = {"table": 1, "chain": 2, "handle": 3, "type": 4, "verdict": 5, "policy": 16}
    return b"\x02\0\0\0" + b"".join(attribute(kinds[name], data) for name, data in parts.items())


def test_events_of_a_trace():
    """Rules and policies are steps; the ends of chains, our own table and other messages are none."""
    names = {"table": b"filter\0", "chain": b"OUTPUT\0"}
    number = lambda value: value.to_bytes(4, "big")  # noqa: E731 - short
    drop = attribute(1, number(0))
    rule = event(**names, handle=(7).to_bytes(8, "big"), type=number(3), verdict=drop)
    assert read(MESSAGE_TRACE, rule) == Step("ip filter", "OUTPUT", 7, 0)
    assert str(read(MESSAGE_TRACE, rule)) == "table ip filter, chain OUTPUT: rule with handle 7"
    policy = event(**names, type=number(1), policy=number(1))
    assert read(MESSAGE_TRACE, policy) == Step("ip filter", "OUTPUT", None, 1)
    assert read(MESSAGE_TRACE, event(**names, type=number(3), verdict=drop)) is None
    assert read(MESSAGE_TRACE, event(**names, type=number(2))) is None
    assert read(0x0A01, rule) is None


def test_the_verdict_names_what_fails_first():
    """What this host's programs get, what others get, and the stage to mend."""
    target = Target(port=8080)
    way = (
        Stage(name="mapping", passed=Passed.YES, what="a"),
        Stage(name="forwarding", passed=Passed.NO, what="b", findings=(finding(),)),
        Stage(name="listening", passed=Passed.NO, what="c"),
    )
    path = Journey(target=target, stages=way, outcome=Outcome.ANSWERED, by="container default/web", others="b")
    assert not path.answered
    assert path.verdict_text() == (
        "8080/tcp: answered by container default/web; for other machines dropped: b; fails first at: forwarding"
    )
    fine = Journey(target=target, stages=way[:1], outcome=Outcome.ANSWERED, by="container default/web")
    assert (fine.answered, fine.verdict_text()) == (True, "8080/tcp: answered by container default/web")
    sctp = Journey(target=Target(port=1, protocol=Protocol.SCTP), stages=way[:1], outcome=None)
    assert (sctp.answered, sctp.verdict_text()) == (True, "1/sctp: not tried")
