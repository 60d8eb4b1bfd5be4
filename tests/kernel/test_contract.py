"""Every row of the reachability contract behind each of other people's firewalls, with the whole program.

One host for each firewall. The watcher is the real one, and so are iptables, ufw and firewalld.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import pytest

from contract import HOST, REMOTE, ContractSite, differences, expected
from firewalls import FIREWALLS, Firewall, recipe
from lab import TIMEOUT, Answer, Failure, ask, connect, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contract import Expected


@pytest.fixture(scope="module", params=FIREWALLS)
def host_behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firewall]:
    """Give a firewall on a host, where the program has started afterwards."""
    with ContractSite(tmp_path_factory.mktemp("site")) as site:
        made = FIREWALLS[request.param](site, tmp_path_factory.mktemp("firewall"))
        site.configure(made.config)
        site.start()
        yield made


def wrong(firewall: Firewall, others: Expected | None = None) -> dict[str, str]:
    """Try every row; give those that are not as they must be."""
    return differences(firewall.site.reach(), expected({**firewall.decides, **(others or {})}))


@pytest.fixture
def firewall(host_behind: Firewall) -> Firewall:
    """Give the same where bridged frames pass the IP hooks, as Docker and Kubernetes have it."""
    if host_behind.site.host.sysctl("net/bridge/bridge-nf-call-iptables") != "1":
        host_behind.site.bridged_frames_pass_ip_hooks(1)
        host_behind.site.sync()
    return host_behind


@pytest.mark.parametrize("bridge_nf", [1, 0])
def test_every_row(firewall: Firewall, bridge_nf: int):
    """Who reaches whom is as it must be; what the firewall decides by itself is as it says."""
    site = firewall.site
    site.bridged_frames_pass_ip_hooks(bridge_nf)
    site.sync()
    assert wrong(firewall) == {}


def test_open_connections_survive(firewall: Firewall):
    """Ports come and go, the table is lost, the watcher dies, the firewall loads its rules anew: nobody notices."""
    site = firewall.site

    def another_port_comes_and_goes() -> None:
        site.create("more", "9001:80/P")
        site.run("more", inside="c2")
        until(lambda: isinstance(ask(site.remote, HOST[4], 9001, timeout=0.2), Answer), what="port 9001")
        site.remove("more")
        until(lambda: isinstance(ask(site.remote, HOST[4], 9001, timeout=0.2), Failure), what="its end")

    def our_table_is_lost() -> None:
        site.host.nft("delete table inet ctrport")
        site.sync()

    def the_watcher_is_killed() -> None:
        site.watcher.kill()
        site.watcher.start()

    def the_watcher_is_restarted() -> None:
        site.watcher.restart()

    def the_firewall_is_loaded_anew() -> None:
        firewall.load()
        site.sync()

    steps = (
        another_port_comes_and_goes,
        our_table_is_lost,
        the_watcher_is_killed,
        the_watcher_is_restarted,
        the_firewall_is_loaded_anew,
    )
    with (
        connect(site.remote, HOST[4], 8080, timeout=5) as from_outside,
        connect(site.remote, HOST[6], 8080, timeout=5) as from_outside6,
        connect(site.host, "127.0.0.1", 8080, timeout=5) as from_the_host,
        connect(site.c2, HOST[4], 8080, timeout=5) as from_a_sibling,
        connect(site.c1, REMOTE[4], 9090, timeout=5) as to_the_outside,
    ):
        connections = (from_outside, from_outside6, from_the_host, from_a_sibling, to_the_outside)
        assert [c.ask().name for c in connections] == ["c1", "c1", "c1", "c1", "remote"]
        for step in steps:
            step()
            said = step.__name__.encode()
            assert [c.echo(said) for c in connections] == [said] * 5
    assert wrong(firewall) == {}


def test_the_operator_s_rules_come_first(firewall: Firewall):
    """The recipes of docs/firewalls.md are seen before every accept, and outlive watcher, rebuild and reload."""
    site = firewall.site
    recipe(site.host, "Only one client may reach published ports", {"198.51.100.7": REMOTE[4]})
    recipe(site.host, "One published port is to be closed to the outside", {"8080": "8085"})
    recipe(site.host, "Log what is let in")

    def written() -> str:
        return site.host.run("nft", "--stateless", "list", "chain", "inet", "ctrport-user", "published").stdout

    rules = written()
    assert rules.count("\n") == 7, rules
    must_be: Expected = {
        "c? -> published, *4": TIMEOUT,
        "i? -> published, *4": TIMEOUT,
        "c3 -> published on one address, there, *4": TIMEOUT,
        "remote -> published, of an isolated network, tcp?": TIMEOUT,
    }
    try:
        assert wrong(firewall, must_be) == {}
        site.host.nft("delete table inet ctrport")
        site.watcher.restart()
        if not firewall.flushes_everything:  # that takes the operator's table too
            firewall.load()
        site.sync()
        assert written() == rules
        assert wrong(firewall, must_be) == {}
    finally:
        site.host.nft("flush chain inet ctrport-user published")


def test_flush_leaves_nothing(firewall: Firewall):
    """Rules of every kind, links, addresses, routes and settings are to the byte what they were before us."""
    site = firewall.site
    site.watcher.terminate()
    site.later_addresses("delete")
    with_us = site.host_state()
    site.cli("flush", check=True)
    firewall.settle()
    try:
        after = site.host_state()
        different = {what for what in after if after[what] != with_us[what]}
        assert different >= {"nft", "links", "settings", "kept settings"}, "the look sees what the program does"
        assert changes(site.before, after) == []
    finally:
        site.watcher.start()
        site.later_addresses("add")
    assert wrong(firewall) == {}


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Give the lines that differ, as diff shows them."""
    assert before.keys() == after.keys()
    found = []
    for what, text in before.items():
        found += difflib.unified_diff(text.splitlines(), after[what].splitlines(), what, what, lineterm="", n=0)
    return found
