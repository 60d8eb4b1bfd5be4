"""What the kernel tells of transactions on nftables, by real programs in a namespace."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ctrport.firewall.monitor import Commit, Monitor
from ctrport.firewall.nft import LibNft
from lab import Lab, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def monitor(lab: Lab) -> Iterator[Monitor]:
    lab.host.nft("flush ruleset")
    with lab.host.call(Monitor) as made:
        yield made


def told(monitor: Monitor) -> Commit:
    """Give the one transaction that is there to be read."""
    (commit,) = until(monitor.read, what="a notification")
    return commit


def test_a_table_that_comes_and_goes(lab: Lab, monitor: Monitor):
    """Each transaction is told once, with the tables that it touched and the program that made it."""
    lab.host.nft("table inet mine { chain a { counter; }; set s { type ipv4_addr; }; }")
    made = told(monitor)
    assert made.touched == {"inet mine"}
    assert made.deleted == frozenset()
    assert made.process.startswith("nft (pid ")
    lab.host.nft("add element inet mine s { 192.0.2.7 }\nadd table ip6 other")
    second = told(monitor)
    assert second.touched == {"inet mine", "ip6 other"}
    assert second.generation == made.generation + 1
    lab.host.nft("flush ruleset")
    gone = told(monitor)
    assert gone.deleted == gone.touched == {"inet mine", "ip6 other"}


def test_iptables_is_told_too(lab: Lab, monitor: Monitor):
    """What iptables-nft does is a transaction like any other."""
    lab.host.run("iptables-nft", "-A", "FORWARD", "-j", "DROP")
    made = monitor.read()
    assert {table for commit in made for table in commit.touched} == {"ip filter"}
    assert made[-1].process.startswith("iptables")


def test_looking_is_not_told(lab: Lab, monitor: Monitor):
    """A listing and a script that is refused change nothing."""
    lab.host.run("nft", "list", "ruleset")
    assert lab.host.run("nft", "add rule inet none none drop", check=False).returncode != 0
    assert monitor.read() == []


def test_a_name_cannot_disturb_a_terminal(lab: Lab, monitor: Monitor):
    """Control characters in the name of a process are replaced."""

    def commit() -> None:
        Path("/proc/thread-self/comm").write_bytes(b"\x1b[31mred")
        LibNft().apply("add table ip scratch\n")

    lab.host.call(commit)
    assert told(monitor).process.startswith("?[31mred (pid ")


def test_a_large_transaction_is_one(lab: Lab, monitor: Monitor):
    """Tens of thousands of elements fit into the buffer and are told as one transaction."""
    numbers = ", ".join(f"{a}.{b}.{c}.1" for a in (192, 198) for b in range(100) for c in range(100))
    lab.host.nft(f"table ip big {{ set s {{ type ipv4_addr; elements = {{ {numbers} }}; }}; }}")
    assert told(monitor).touched == {"ip big"}


def test_lost_notifications_are_told(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    """Who does not read in time learns that something was done, and goes on reading."""
    monkeypatch.setattr("ctrport.firewall.monitor.BUFFER", 4096)
    with lab.host.call(Monitor) as monitor:
        elements = ", ".join(f"2001:db8::{number:x}" for number in range(5000))
        lab.host.nft(f"table ip flood {{ set s {{ type ipv6_addr; elements = {{ {elements} }}; }}; }}")
        assert Commit(generation=0) in monitor.read()
        lab.host.nft("add table ip after")
        assert "ip after" in told(monitor).touched


def test_waiting(lab: Lab, monitor: Monitor):
    """The asynchronous reader gives what comes while it waits."""

    async def first() -> Commit:
        async with asyncio.timeout(5):
            asyncio.get_running_loop().call_later(0.1, lab.host.nft, "add table ip scratch")
            async for commit in monitor.commits():
                return commit
        raise AssertionError

    assert asyncio.run(first()).touched == {"ip scratch"}
