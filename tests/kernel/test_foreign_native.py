"""Published ports and egress behind hand-written nftables, and the operator's own table."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from filtered import HOST, LINKS, OPEN, REMOTE, SILENCE, FilteredSite, dead, seen, without_own_table
from firewalls import recipe
from lab import Lab, ask, connect
from passes import writing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALL_DROPPED = dead("published tcp", "published udp", "sibling", "egress")
POLICY = """
table inet filter {
    chain input { type filter hook input priority filter; policy accept; tcp dport 7001 drop; }
    chain forward { type filter hook forward priority filter; policy drop; }
}
"""
LAST_RULE = """
table inet mine {
    set bad { type ipv4_addr; elements = { 203.0.113.9 }; }
    chain input { type filter hook input priority filter; policy accept; tcp dport 7001 drop; }
    chain passing {
        type filter hook forward priority 5; policy accept
        ip saddr @bad drop
        counter log prefix "end: " reject
    }
}
"""
# Debian's example has the first rule; the drop is two chains further on.
JUMPS = """
table inet site {
    chain input { type filter hook input priority filter; policy accept; tcp dport 7001 drop; }
    chain end { counter; drop; }
    chain strangers { ip saddr 203.0.113.9 drop; ct state new jump end; }
    chain passing {
        type filter hook forward priority 0; policy accept
        ct state vmap { established : accept, related : accept, invalid : drop }
        iifname vmap { "eth0" : jump strangers, "lo" : accept }
        goto strangers
    }
}
"""
shapes = pytest.mark.parametrize(
    ("rules", "where", "what"),
    [
        pytest.param(POLICY, "inet filter, chain forward", r"the policy \(drop\)", id="policy"),
        pytest.param(LAST_RULE, "inet mine, chain passing", r"the rule with handle \d+ \(reject\)", id="last rule"),
        pytest.param(
            *(JUMPS, "inet site, chain passing"),
            r"the rule with handle \d+ \(drop\) in chain end, to which it leads,",
            id="jumps",
        ),
    ],
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FilteredSite]:
    with FilteredSite(tmp_path / "state") as made:
        made.publish()
        yield made


@shapes
def test_told_and_left_alone(site: FilteredSite, rules: str, where: str, what: str):
    """Without leave it is told, to table, chain and rule; the commands that are told mend it as they stand."""
    site.host.nft(rules)
    before = site.rules()
    assert site.reach() == ALL_DROPPED
    (obstacle,) = site.ensure()
    assert where in obstacle.where
    assert re.match(what, obstacle.what)
    assert site.reach() == ALL_DROPPED
    for command in obstacle.fix:
        site.host.run(*shlex.split(command))
    assert site.diagnose() == site.ensure() == []
    assert site.reach() == OPEN
    assert any(line.endswith(f"chain {where.replace(', chain', '')}") for line in site.flush())
    assert site.rules() == without_own_table(before)


@shapes
def test_mended_when_the_configuration_says_so(site: FilteredSite, rules: str, where: str, what: str):
    """With adjust_nftables all passes, a second pass changes nothing, and a flush takes all back."""
    del where, what
    site.host.nft(rules)
    before = site.rules()
    assert site.reach() == ALL_DROPPED
    assert site.ensure(adjust_nftables=True) == []
    assert site.reach() == OPEN
    first = site.rules()
    assert site.ensure(adjust_nftables=True) == []
    assert site.rules() == first
    assert seen(ask(site.remote, HOST[4], 7000, timeout=SILENCE)) == ("host", REMOTE[4])
    assert seen(ask(site.remote, HOST[4], 7001, timeout=SILENCE)) == "closed"
    site.flush()
    assert site.rules() == without_own_table(before)


def test_a_verdict_map_that_drops_what_is_invalid_is_no_obstacle(site: FilteredSite):
    """The first rule of Debian's and RHEL's examples, alone: nothing is told, added or closed."""
    site.host.nft(
        "table inet filter { chain f { type filter hook forward priority 0; policy accept\n"
        "ct state vmap { established : accept, related : accept, invalid : drop }; }; }"
    )
    site.ensure()
    before = site.rules()
    assert site.ensure(adjust_nftables=True) == site.diagnose() == []
    assert site.rules() == before
    assert site.reach() == OPEN


def test_a_full_pass_puts_back_what_a_reload_has_flushed(lab: Lab, tmp_path: Path):
    """`flush ruleset` and their rules again, as nftables.service does: the next pass brings back both of ours."""
    with writing(lab, tmp_path, adjust_nftables=True) as writer:
        writer.publish("a", "8080:80")
        for _ in range(2):
            lab.host.nft("flush ruleset\n" + POLICY)
            assert seen(ask(lab.remote, HOST[4], 8080, timeout=SILENCE)) == "closed"
            writer.wait(writer.reconciler.resync())
            assert seen(ask(lab.remote, HOST[4], 8080, timeout=SILENCE)) == ("a", REMOTE[4])
        before = lab.host.run("nft", "--stateless", "list", "ruleset").stdout
        writer.wait(writer.reconciler.resync())
        assert lab.host.run("nft", "--stateless", "list", "ruleset").stdout == before


def test_internal_networks_get_no_way_out(site: FilteredSite):
    """Their containers reach each other, where br_netfilter shows that to the chain; nothing of theirs leaves."""
    site.host.nft(POLICY)
    inside = dataclasses.replace(LINKS, internal=LINKS.bridges)
    assert site.ensure(inside, adjust_nftables=True) == []
    assert site.reach() == dead("egress")
    assert site.ensure(adjust_nftables=True) == []
    assert site.reach() == OPEN


def test_a_reload_of_their_rules_is_followed(site: FilteredSite):
    """`flush ruleset` and the same rules again, as nftables.service does: the next pass mends it."""
    site.host.nft(POLICY)
    site.ensure(adjust_nftables=True)
    site.host.nft("flush ruleset\n" + POLICY)
    site.publish()
    assert site.reach() == ALL_DROPPED
    site.ensure(adjust_nftables=True)
    assert site.reach() == OPEN


def test_what_they_drop_by_name_stays_dropped(site: FilteredSite):
    """Our accepts stand behind the rules for a part of the traffic."""
    site.host.nft(LAST_RULE)
    site.host.nft("add element inet mine bad { 192.0.2.2 }")
    site.ensure(adjust_nftables=True)
    assert seen(ask(site.remote, HOST[4], 8080, timeout=SILENCE)) == "closed"
    assert seen(ask(site.remote, HOST[6], 8080, timeout=SILENCE)) == ("c1", REMOTE[6])


def test_a_rule_of_their_own_for_our_mark_is_enough(site: FilteredSite):
    """An operator who lets our mark pass in his own words has said what he wants: nothing is told or added."""
    site.host.nft(POLICY)
    site.host.nft("add rule inet filter forward ct mark and 0x10000 == 0x10000 counter accept")
    assert site.ensure() == site.ensure(adjust_nftables=True) == []
    assert site.reach() == dead("egress", "sibling directly")


def test_chains_that_drop_nothing_of_ours_are_left_alone(site: FilteredSite):
    """No finding and no rule where a chain drops a part of the traffic, or nothing."""
    site.host.nft(
        "table ip a { chain f { type filter hook forward priority 0; policy accept; tcp dport 25 drop; }; }\n"
        "table inet b { chain f { type filter hook forward priority 1; policy accept; counter; }; }"
    )
    site.ensure()
    before = site.rules()
    assert site.ensure(adjust_nftables=True) == []
    assert site.rules() == before


def test_what_firewalld_closes_while_it_loads_its_rules_stays_closed(site: FilteredSite):
    """The table by which a reload keeps new connections out is no finding, and gets no rule."""
    site.host.nft(
        "table inet firewalld_policy_drop { chain filter_forward {\n"
        "type filter hook forward priority 9; policy drop; ct state established,related accept; }; }"
    )
    site.ensure()
    before = site.rules()
    assert site.ensure(adjust_nftables=True) == site.diagnose() == []
    assert site.rules() == before


# --------------------------------------------------------------------------------------------- the operator's table


def user_rule(site: FilteredSite, rule: str) -> None:
    site.host.nft(f"add rule inet ctrport-user published {rule}")


def test_only_one_client_may_reach_published_ports(site: FilteredSite):
    """Recipe of docs/firewalls.md: one rule, and a connection that exists is cut off too."""
    site.ensure()
    with connect(site.remote, HOST[4], 8080, timeout=SILENCE) as open_one:
        open_one.ask()
        recipe(site.host, "Only one client may reach published ports")
        with pytest.raises(TimeoutError):
            open_one.ask()
    assert site.reach() == dead("published", spared="6") | {"published port, directly": "closed"} | {
        "sibling by published port": "closed"
    }
    site.host.nft("flush chain inet ctrport-user published")
    user_rule(site, "ip saddr != 192.0.2.2 drop")
    assert seen(ask(site.remote, HOST[4], 8080, timeout=SILENCE)) == ("c1", REMOTE[4])


def test_only_one_published_port_is_closed_to_the_outside(site: FilteredSite):
    """Recipe of docs/firewalls.md: by the published port, whatever the container's port is."""
    site.ensure()
    recipe(site.host, "One published port is to be closed to the outside")
    for family in (4, 6):
        assert seen(ask(site.remote, HOST[family], 8080, timeout=SILENCE)) == "closed"
        assert seen(ask(site.remote, HOST[family], 8081, timeout=SILENCE)) == ("c1", REMOTE[family])
        assert seen(ask(site.remote, HOST[family], 8080, "udp", timeout=SILENCE)) == ("c1", REMOTE[family])
    assert seen(ask(site.c2, HOST[4], 8080, timeout=SILENCE)) == ("c1", "198.51.100.1")
    assert seen(ask(site.host, "127.0.0.1", 8080, timeout=SILENCE)) == ("c1", "198.51.100.1")


def test_what_is_let_in_is_logged(site: FilteredSite):
    """Recipe of docs/firewalls.md: once for each connection; counted here, as the kernel's log is the machine's."""
    site.ensure()
    recipe(site.host, "Log what is let in")
    with connect(site.remote, HOST[4], 8080, timeout=SILENCE) as one:
        one.ask()
        one.ask()
    ask(site.remote, HOST[4], 8090, timeout=SILENCE)
    assert "counter packets 1 " in site.host.nft("list chain inet ctrport-user published")


def test_the_operator_s_rules_are_never_touched(site: FilteredSite):
    """They outlive passes, rebuilds of our table and a flush; only an empty table goes."""
    site.ensure()
    user_rule(site, "ip saddr 203.0.113.9 drop")
    site.host.nft("add set inet ctrport-user friends { type ipv4_addr; elements = { 192.0.2.2 }; }")
    before = site.host.nft("list table inet ctrport-user")
    site.publish()
    site.ensure()
    site.ensure(mark=0x20000)
    site.ensure()
    assert site.host.nft("list table inet ctrport-user") == before
    assert "kept table inet ctrport-user: it has rules of yours" in site.flush()
    assert site.host.nft("list table inet ctrport-user") == before
    site.host.nft("flush chain inet ctrport-user published; delete set inet ctrport-user friends")
    site.publish()
    assert "removed table inet ctrport-user" in site.flush()


def test_a_table_that_the_operator_loads_at_boot(site: FilteredSite):
    """Rules from /etc/nftables.conf are there before we are: the missing half is added."""
    site.host.nft("table inet ctrport-user { chain published { ip saddr 192.0.2.2 drop; }; }")
    assert seen(ask(site.remote, HOST[4], 8080, timeout=SILENCE)) == ("c1", REMOTE[4])
    site.ensure()
    assert seen(ask(site.remote, HOST[4], 8080, timeout=SILENCE)) == "closed"
