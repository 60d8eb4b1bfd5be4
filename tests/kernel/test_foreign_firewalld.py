"""Published ports and egress behind a real firewalld, which runs on the host with a D-Bus of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from ctrport.firewall.foreign import firewalld, translations
from filtered import HOST, LINKS, OPEN, REMOTE, SILENCE, FilteredSite, Firewalld, dead, seen, without_own_table
from lab import ask, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REJECTED = dead("sibling directly", "egress")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FilteredSite]:
    with FilteredSite(tmp_path / "state") as made:
        made.publish()
        yield made


@pytest.fixture(params=["nftables", "iptables"])
def daemon(
    site: FilteredSite, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Firewalld:
    """Give a firewalld that knows port 7000, with each of its backends."""
    made = Firewalld(site, tmp_path, backend=request.param)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made.address)
    made("--permanent", "--add-port=7000/tcp")
    made("--reload")
    return made


def test_dead_before_and_alive_after_and_after_a_reload(site: FilteredSite, daemon: Firewalld):
    """Egress is rejected with our own table alone; it passes after, after a reload too; nothing of it stays."""
    before, zones = site.rules(), daemon("--list-all-zones")
    assert site.reach() == REJECTED
    (obstacle, *_) = site.diagnose()
    assert obstacle.where == "firewalld"
    for _ in range(2):
        assert site.ensure() == []
        assert site.diagnose() == []
        assert site.reach() == OPEN
        daemon("--reload")
        assert site.reach() == REJECTED
    daemon.stop()
    daemon.start()
    site.ensure()
    assert site.reach() == OPEN
    assert seen(ask(site.remote, HOST[4], 7000, timeout=SILENCE)) == ("host", REMOTE[4])
    assert seen(ask(site.remote, HOST[4], 7001, timeout=SILENCE)) == "closed"
    # The operator's zones look as before; only our bridge is where it was put, and only until the next reload.
    shown = daemon("--list-all-zones").splitlines()
    assert [line for line in shown if line not in zones.splitlines()] == [
        "trusted (active)",
        "  interfaces: ctrport0",
    ]
    assert daemon("--permanent", "--zone=trusted", "--list-interfaces").strip() == ""
    site.flush()
    assert daemon("--list-all-zones") == zones
    daemon("--reload")  # it keeps empty chains for each zone that was ever used
    assert site.rules() == without_own_table(before)


def test_with_the_rights_of_the_service(site: FilteredSite, daemon: Firewalld):
    """The capabilities of the systemd unit are enough."""
    assert daemon("--state").strip() == "running"
    assert site.ensure_as_the_service_may() == "[]\n"
    assert site.reach() == OPEN


def test_internal_networks_are_put_there_for_their_own_sake_only(site: FilteredSite, daemon: Firewalld):
    """A zone is a way out: an internal bridge gets it only where firewalld sees what siblings send each other."""
    inside = dataclasses.replace(LINKS, internal=LINKS.bridges)
    zone = "--get-zone-of-interface=ctrport0"
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        site.host.sysctl(f"net/bridge/{name}", 0)
    assert site.ensure(inside) == []
    assert daemon(zone, check=False).strip() in ("", "no zone")
    assert site.reach()["sibling directly"] == OPEN["sibling directly"]
    site.host.sysctl("net/bridge/bridge-nf-call-iptables", 1)
    assert site.ensure(inside) == []
    assert daemon(zone).strip() == "trusted"
    assert site.reach()["sibling directly"] == OPEN["sibling directly"]


def test_a_zone_that_the_operator_chose_stays(site: FilteredSite, daemon: Firewalld):
    """Whatever it lets pass: it is his word, by a pass and by a flush."""
    daemon("--permanent", "--zone=internal", "--add-interface=ctrport0")
    daemon("--reload")
    site.ensure()
    assert daemon("--get-zone-of-interface=ctrport0").strip() == "internal"
    site.flush()
    assert daemon("--get-zone-of-interface=ctrport0").strip() == "internal"


async def test_a_reload_is_told(site: FilteredSite, daemon: Firewalld):
    """A signal comes for a reload, and one when firewalld goes."""
    del site
    told = []

    async def listen() -> None:
        async for _ in firewalld.reloads():
            told.append(1)  # noqa: PERF401 - it never ends

    task = asyncio.create_task(listen())
    try:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(daemon, "--reload")
        await asyncio.to_thread(until, lambda: len(told) == 1, what="word of a reload")
        await asyncio.to_thread(daemon.stop)
        await asyncio.to_thread(until, lambda: len(told) == 2, what="word of an end")
    finally:
        task.cancel()


def test_the_firewalld_of_another_network_namespace_is_left_alone(site: FilteredSite, daemon: Firewalld):
    """A bus may be shared by namespaces: this process is on it, and not on that host."""
    del daemon

    def found() -> bool:
        with firewalld.connected() as one:
            return one is not None

    assert (found(), site.host.call(found)) == (False, True)


def test_without_a_bus_nothing_is_said(site: FilteredSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Most hosts have no firewalld, and some no D-Bus."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'none'}")
    assert site.ensure() == site.diagnose() == []


def test_a_forward_port_is_a_translation(site: FilteredSite, daemon: Firewalld):
    """A port that a zone sends elsewhere is told, with each backend's own name for the place."""
    daemon("--add-forward-port=port=7100:proto=tcp:toport=80:toaddr=198.51.100.3")
    failures: list[str] = []
    found = site.host.call(lambda: list(translations.read([ip_address(HOST[4])], failures)))
    reasons = [each.reason() for each in found]
    assert failures == []
    assert len(reasons) == 1
    assert reasons[0] in (
        "7100/tcp is translated by firewalld (nftables table inet firewalld)",
        "7100/tcp is translated by chain PRE_public_allow of iptables nat",
    )
