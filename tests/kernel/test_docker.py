"""Beside a real Docker on the same host: its FORWARD DROP, DOCKER-USER and published ports, and ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from docker_instance import PAGE, SUBNET, Docker
from filtered import C1, HOST, OPEN, SILENCE, FilteredSite, dead, seen
from lab import TIMEOUT, ask, http_get, serve
from passes import passing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab import Netns
    from passes import Writer

THEIRS = 7080


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilteredSite]:
    with FilteredSite(tmp_path_factory.mktemp("site") / "state") as made:
        yield made


@pytest.fixture(scope="module")
def docker(host: FilteredSite) -> Iterator[Docker]:
    """Give a Docker that publishes a container of its own."""
    host.host.sysctl("net.ipv4.ip_forward", 0)  # Docker drops in FORWARD where it had to begin forwarding itself
    with Docker(host.host) as made:
        made.web("theirs", f"{THEIRS}:80")
        yield made


@pytest.fixture
def site(host: FilteredSite, docker: Docker) -> Iterator[FilteredSite]:
    """Give the site; after each test, and a flush, all rules are as they were."""
    assert docker("ps", "--quiet").stdout.strip()
    before = host.rules()
    assert ":FORWARD DROP" in before
    assert "-A FORWARD -j DOCKER-USER" in before
    yield host
    host.flush()
    assert host.rules() == before
    assert http_get(host.remote, HOST[4], THEIRS) == PAGE


@pytest.fixture
def writer(site: FilteredSite, tmp_path: Path) -> Iterator[Writer]:
    """Give the program's own passes on that host, for the container `c1`."""
    with (
        serve(site.c1, 8000) as server,
        passing(site.lab, tmp_path, {"c1": site.c1}, {"c1": [server]}) as made,
    ):
        yield made


def page(ns: Netns, port: int, address: str = HOST[4]) -> object:
    return http_get(ns, address, port, timeout=0.5)


def test_ours_beside_theirs(site: FilteredSite):
    """Dead behind Docker's DROP in IPv4 and alive once let through; Docker's own port answers all along."""
    assert page(site.remote, THEIRS) == PAGE
    site.publish()
    assert site.reach() == dead("published tcp 4", "published udp 4", "sibling", "egress 4")
    assert page(site.remote, THEIRS) == PAGE
    assert site.ensure() == []
    assert site.reach() == OPEN
    for client in (site.remote, site.host, site.c1):
        assert page(client, THEIRS) == PAGE


def test_containers_of_both(site: FilteredSite, docker: Docker):
    """They reach each other by published ports and not directly."""
    site.publish()
    site.ensure()
    said = ("sh", "-c", "echo '?' | busybox nc -w 1 $0 $1")
    assert docker("exec", "theirs", "/bin/busybox", *said, HOST[4], "8080", check=False).stdout.startswith("{")
    assert docker("exec", "theirs", "/bin/busybox", *said, C1[4], "80", check=False).stdout == ""
    assert page(site.c1, THEIRS) == PAGE
    assert ask(site.c1, f"{SUBNET}.2", 81, timeout=SILENCE) is TIMEOUT


def test_docker_user_counts_for_both(site: FilteredSite):
    """What the operator drops there is dropped for Docker's ports and ours, in IPv4."""
    site.publish()
    site.ensure()
    rule = ("DOCKER-USER", "-s", "192.0.2.2", "-j", "DROP")
    site.host.run("iptables", "-I", *rule)
    try:
        site.ensure()
        assert page(site.remote, THEIRS) != PAGE
        assert seen(ask(site.remote, HOST[4], 8080, timeout=SILENCE)) == "closed"
        assert seen(ask(site.remote, HOST[6], 8080, timeout=SILENCE)) != "closed"
    finally:
        site.host.run("iptables", "-D", *rule)


def test_a_port_of_docker_s_waits(site: FilteredSite, docker: Docker, writer: Writer):
    """It stays Docker's, which the reason names; our other port answers; when it is free it is ours."""
    docker.web("other", "8080:80")
    try:
        writer.publish("c1", "8080:80 8081:80")
        assert writer.states("c1") == [
            ("waiting", "8080/tcp is translated by Docker (chain DOCKER of iptables nat)"),
            ("active", ""),
        ]
        assert page(site.remote, 8080) == PAGE
        assert seen(ask(site.remote, HOST[4], 8081)) == ("c1", "192.0.2.2")
    finally:
        docker("rm", "--force", "other")
    writer.wait(writer.reconciler.resync())
    assert writer.states("c1") == [("active", ""), ("active", "")]
    assert seen(ask(site.remote, HOST[4], 8080)) == ("c1", "192.0.2.2")


def test_docker_is_refused_what_we_hold(site: FilteredSite, docker: Docker, writer: Writer):
    """Its own `run` fails with "address already in use", and our port goes on answering."""
    writer.publish("c1", "8080:80")
    try:
        failed = docker.web("other", "8080:80", check=False)
        assert failed.returncode != 0
        assert "address already in use" in failed.stderr
    finally:
        docker("rm", "--force", "other")
    assert seen(ask(site.remote, HOST[4], 8080)) == ("c1", "192.0.2.2")
