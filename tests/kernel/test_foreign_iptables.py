"""Published ports and egress behind iptables, both backends, and behind ufw."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from filtered import HOST, LINKS, OPEN, SILENCE, FilteredSite, dead, seen, without_own_table
from firewalls import Ufw
from lab import ask, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKENDS = ["nft", "legacy"]
both_backends = pytest.mark.parametrize("backend", BACKENDS)
ALL_DROPPED = dead("published tcp", "published udp", "sibling", "egress")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FilteredSite]:
    with FilteredSite(tmp_path / "state") as made:
        made.publish()
        yield made


def iptables(site: FilteredSite, backend: str, *lines: str) -> None:
    """Run commands in both families, each written as after the word iptables."""
    for line in lines:
        for family in ("ip", "ip6"):
            site.host.run(f"{family}tables-{backend}", *line.split())


def forward(site: FilteredSite, backend: str, family: str = "ip") -> list[str]:
    """Give FORWARD as `iptables -S` prints it."""
    return site.host.run(f"{family}tables-{backend}", "-S", "FORWARD").stdout.splitlines()


@both_backends
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(["-P FORWARD DROP"], id="policy"),
        pytest.param(["-A FORWARD -j REJECT"], id="last rule rejects"),
        pytest.param(["-N END", "-A END -j LOG", "-A END -j DROP", "-A FORWARD -j END"], id="in a chain"),
        pytest.param(["-A FORWARD -m conntrack --ctstate NEW -j DROP"], id="new connections"),
    ],
)
def test_dead_before_and_alive_after(site: FilteredSite, backend: str, rules: list[str]):
    """Each way to drop: dead with our own table alone, alive after, their own rules work, no trace stays."""
    iptables(site, backend, "-P INPUT ACCEPT", "-A INPUT -p tcp --dport 7001 -j DROP", *rules)
    before = site.rules()
    expected = ALL_DROPPED
    assert site.reach() == expected
    assert [o.where for o in site.diagnose()] == [
        f"{family}tables-{backend} table filter, chain FORWARD" for family in ("ip", "ip6")
    ]
    assert site.ensure() == []
    assert site.reach() == OPEN
    assert site.diagnose() == []
    assert ask(site.remote, HOST[4], 7000, timeout=SILENCE)
    assert seen(ask(site.remote, HOST[4], 7001, timeout=SILENCE)) == "closed"
    assert "-j CTRPORT-FORWARD" in "".join(forward(site, backend)), "their own tool reads the table"
    site.flush()
    assert site.rules() == without_own_table(before)


@both_backends
def test_with_the_rights_of_the_service(site: FilteredSite, backend: str):
    """The capabilities of the systemd unit are enough."""
    iptables(site, backend, "-P FORWARD DROP")
    assert site.ensure_as_the_service_may() == "[]\n"
    assert site.reach() == OPEN


def test_translations_are_read_with_the_rights_of_the_service(site: FilteredSite):
    """Both backends' nat tables, and the kernel's word that they have not changed."""
    for backend, port in (("nft", "7100"), ("legacy", "7200")):
        line = f"-t nat -A PREROUTING -p tcp --dport {port} -j REDIRECT --to-ports 7000"
        site.host.run(f"iptables-{backend}", *line.split())
    said = site.as_the_service_may(
        "from ctrport.firewall.foreign import translations\n"
        "from ctrport.firewall.generation import Generation\n"
        "failures, count = [], Generation()\n"
        "print(*[each.reason() for each in translations.read([], failures)], *failures, sep='\\n')\n"
        "print(count.foreign() == count.foreign() and all(count.foreign()))"
    )
    assert said.splitlines() == [
        "7100/tcp is translated by chain PREROUTING of iptables nat",
        "7200/tcp is translated by chain PREROUTING of iptables-legacy nat",
        "True",
    ]


@both_backends
def test_internal_networks_get_no_way_out(site: FilteredSite, backend: str):
    """Their containers reach each other, where br_netfilter shows that to FORWARD; nothing of theirs leaves."""
    iptables(site, backend, "-P FORWARD DROP")
    assert site.ensure(dataclasses.replace(LINKS, internal=LINKS.bridges)) == []
    assert site.reach() == dead("egress")
    assert site.ensure() == []
    assert site.reach() == OPEN


@both_backends
def test_twice_is_once(site: FilteredSite, backend: str):
    """A second pass finds all in place and changes nothing."""
    iptables(site, backend, "-P FORWARD DROP")
    site.ensure()
    first = site.rules()
    assert site.ensure() == []
    assert site.rules() == first


@both_backends
def test_nothing_is_inserted_where_nothing_drops(site: FilteredSite, backend: str):
    """Rules for a part of the traffic, and drops between other networks, are nobody's obstacle."""
    iptables(
        site,
        backend,
        "-A FORWARD -p tcp --dport 25 -j DROP",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "-A FORWARD -o docker0 -j DROP",
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
    )
    site.ensure()
    before = forward(site, backend)
    assert site.reach() == OPEN
    assert [line for line in before if "CTRPORT" in line] == []


def test_legacy_tables_are_not_made_by_looking(site: FilteredSite):
    """Where legacy is not in use, neither a pass nor a flush brings its tables into the kernel."""
    site.ensure()
    site.diagnose()
    site.flush()
    for family in ("ip", "ip6"):
        assert site.host.run("cat", f"/proc/net/{family}_tables_names").stdout == ""


@both_backends
def test_a_policy_that_is_opened_again(site: FilteredSite, backend: str):
    """When nothing drops any more, the next pass takes our chain away."""
    iptables(site, backend, "-P FORWARD ACCEPT")
    before = site.rules()
    iptables(site, backend, "-P FORWARD DROP")
    site.ensure()
    iptables(site, backend, "-P FORWARD ACCEPT")
    site.ensure()
    site.host.nft("delete table inet ctrport-user")
    assert site.rules() == before


@both_backends
def test_after_a_foreign_flush_the_next_pass_mends(site: FilteredSite, backend: str):
    """`iptables -F; iptables -X`, as restarts of firewalls do."""
    iptables(site, backend, "-P FORWARD DROP")
    site.ensure()
    iptables(site, backend, "-F", "-X")
    assert site.reach() == ALL_DROPPED
    site.ensure()
    assert site.reach() == OPEN


@both_backends
def test_what_the_operator_closes_in_forward_stays_closed(site: FilteredSite, backend: str):
    """A drop for one client stands before our accept, also when it was added later."""
    iptables(site, backend, "-P FORWARD DROP")
    site.ensure()
    site.host.run(f"iptables-{backend}", "-A", "FORWARD", "-s", "192.0.2.2", "-j", "DROP")
    site.ensure()
    assert forward(site, backend)[-1] == "-A FORWARD -j CTRPORT-FORWARD"
    assert seen(ask(site.remote, HOST[4], 8080, timeout=SILENCE)) == "closed"
    assert seen(ask(site.remote, HOST[6], 8080, timeout=SILENCE)) != "closed"


@both_backends
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(
            ["-A DOCKER-USER -s 192.0.2.2/32 -j DROP", "-A DOCKER-USER -j RETURN"], id="drop, then return"
        ),
        pytest.param(
            ["-A DOCKER-USER -s 192.0.2.9/32 -j RETURN", "-A DOCKER-USER -i eth0 -j DROP"], id="all but one"
        ),
    ],
)
def test_drops_in_docker_user_win(site: FilteredSite, backend: str, rules: list[str]):
    """The operator's own chain is judged before ours, however it is written, and also by the next passes."""
    for line in ["-N DOCKER-USER", "-P FORWARD DROP", "-A FORWARD -j DOCKER-USER", *rules]:
        site.host.run(f"iptables-{backend}", *line.split())
    for _ in range(2):
        site.ensure()
        assert seen(ask(site.remote, HOST[4], 8080, timeout=SILENCE)) == "closed"
    users = site.host.run(f"iptables-{backend}", "-S", "DOCKER-USER").stdout.splitlines()
    assert users == ["-N DOCKER-USER", *rules], "not a word of it has changed"


@both_backends
def test_what_docker_user_returns_passes(site: FilteredSite, backend: str):
    """As it passes on to Docker's own rules, what the operator lets go on passes on to ours."""
    for line in [
        "-N DOCKER-USER",
        "-P FORWARD DROP",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A DOCKER-USER -s 192.0.2.2 -j RETURN",
        "-A DOCKER-USER -s 203.0.113.0/24 -j DROP",
        "-A DOCKER-USER -j RETURN",
    ]:
        site.host.run(f"iptables-{backend}", *line.split())
    site.ensure()
    assert site.reach() == OPEN


def test_docker_s_networks_stay_closed_to_our_containers(site: FilteredSite):
    """What Docker's policy keeps from its containers is not opened by our egress."""
    site.lab.bridge("docker0", "203.0.113.1/24")
    other = site.lab.container_like("other", "docker0", "203.0.113.2/24", gateway4="203.0.113.1")
    site.host.run("iptables-nft", "-P", "FORWARD", "DROP")
    site.ensure()
    with serve(other, 80):
        assert seen(ask(site.c1, "203.0.113.2", 80, timeout=SILENCE)) == "closed"
        site.host.run("iptables-nft", "-P", "FORWARD", "ACCEPT")
        assert seen(ask(site.c1, "203.0.113.2", 80, timeout=SILENCE)) == ("other", "203.0.113.1")


# ---------------------------------------------------------------------------------------------------------- ufw


def test_ufw(site: FilteredSite, tmp_path: Path):
    """Dead behind ufw, alive after, through its reload, with its own ports and its status as they were."""
    ufw = Ufw(site.host, tmp_path)
    ufw("allow", "7000/tcp")
    ufw("--force", "enable")
    before, status = site.rules(), ufw("status", "verbose")
    assert "deny (routed)" in status
    assert site.reach() == ALL_DROPPED
    assert site.ensure() == []
    assert site.reach() == OPEN
    assert ufw("status", "verbose") == status
    assert seen(ask(site.remote, HOST[4], 7000, timeout=SILENCE)) == ("host", "192.0.2.2")
    assert seen(ask(site.remote, HOST[4], 7001, timeout=SILENCE)) == "closed"
    # What passes is not logged as blocked: our jump stands before ufw's log.
    listed = forward(site, "nft")
    assert listed.index("-A FORWARD -j CTRPORT-FORWARD") < listed.index("-A FORWARD -j ufw-after-logging-forward")
    # A route rule of ufw for one client still counts.
    ufw("route", "deny", "from", "192.0.2.2", "to", "any")
    assert site.ensure() == []
    assert seen(ask(site.remote, HOST[4], 8080, timeout=SILENCE)) == "closed"
    ufw("route", "delete", "deny", "from", "192.0.2.2", "to", "any")
    ufw("reload")
    assert site.ensure() == []
    assert site.reach() == OPEN
    site.flush()
    assert site.rules() == without_own_table(before)
