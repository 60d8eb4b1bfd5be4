"""What doctor asks of the kernel and of firewalld, in a namespace."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ctrport.config import Settings
from ctrport.doctor import firewalls, kernel
from ctrport.doctor.finding import Code, Severity
from ctrport.doctor.survey import Survey
from ctrport.doctor.watcher import State, Watcher
from ctrport.errors import KernelError
from ctrport.firewall import conntrack, nftrace
from ctrport.firewall.nft import LibNft
from ctrport.host import lock
from ctrport.model.ports import Protocol
from filtered import NETWORK, FilteredSite, Firewalld
from lab import Lab, connect, serve

if TYPE_CHECKING:
    from pathlib import Path


def test_a_look_at_a_script_applies_nothing(lab: Lab):
    """The kernel itself judges what is tried, and keeps nothing of it."""
    nft = lab.host.call(LibNft)
    assert list(kernel.missing(nft.refusal)) == []
    assert lab.host.nft("list tables") == ""
    lab.host.nft("add table inet mine")
    assert "File exists" in nft.refusal("create table inet mine\n")  # only the kernel can know
    assert "syntax error" in nft.refusal("no such word\n")
    nft.apply("add table inet other\n")
    assert lab.host.nft("list tables") == "table inet mine\ntable inet other\n"


def test_the_kernel_tells_of_its_flows(lab: Lab):
    """The small question that stands for all others about flows is answered."""
    lab.host.call(conntrack.look)


def test_a_trace_shows_one_connection_alone(lab: Lab):
    """Rules of every table that it meets, in order, and nothing of other connections; the table goes."""
    lab.host.nft(
        "table ip one { chain o { type filter hook output priority -10; tcp dport 80 accept; }; }\n"
        "table inet two { chain o { type filter hook output priority 10; policy drop; tcp dport 81 accept; }; }"
    )
    nft = lab.host.call(LibNft)
    with serve(lab.remote, 80), serve(lab.remote, 81), connect(lab.host, "192.0.2.2", 81) as other:

        def trace() -> list[nftrace.Step]:
            with nftrace.traced(nft, str(Protocol.TCP), 40001) as steps:
                other.ask()
                with pytest.raises(OSError, match="timed out"):
                    connect(lab.host, "192.0.2.2", 80, source_port=40001, timeout=0.3)
            return steps

        steps = lab.host.call(trace)
    assert [(s.table, s.chain, s.handle is None, s.verdict) for s in steps[:2]] == [
        ("ip one", "o", False, nftrace.ACCEPT),
        ("inet two", "o", True, nftrace.DROP),
    ]
    assert "ctrport-doctor" not in lab.host.nft("list tables")
    assert not nftrace.remove(nft)


def test_a_trace_that_the_kernel_refuses(lab: Lab):
    """An error of ours, and no table."""
    nft = lab.host.call(LibNft)
    with pytest.raises(KernelError), nftrace.traced(nft, "no protocol", 1):
        pass
    assert lab.host.nft("list tables") == ""


def test_who_holds_the_lock(tmp_path: Path):
    """By a look that does not touch it: it can be had right after."""
    assert lock.holder(tmp_path / "none", lock.WRITER) is None
    held = lock.try_acquire(tmp_path, lock.WRITER)
    assert held is not None
    try:
        assert lock.holder(tmp_path, lock.WRITER) == os.getpid()
    finally:
        lock.release(held)
    assert lock.holder(tmp_path, lock.WRITER) is None


def test_firewalld_without_a_zone_for_our_bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Found, and gone after its command, which firewalld itself takes."""
    with FilteredSite(tmp_path / "state") as site:
        site.publish()
        daemon = Firewalld(site, tmp_path)
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.address)
        seen = Survey(settings=Settings(), watcher=Watcher(state=State.ABSENT), networks=(NETWORK,))
        (found,) = site.host.call(lambda: list(firewalls.check(seen)))
        assert (found.code, found.severity) == (Code.FIREWALLD_ZONE, Severity.WARNING)
        for command in found.fix:
            daemon(*command.split()[1:])
        assert site.host.call(lambda: list(firewalls.check(seen))) == []
