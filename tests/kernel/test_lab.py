"""The lab itself: if these fail, what the other kernel tests say means nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import pytest

from lab import (
    DIRECTORY,
    REFUSED,
    TIMEOUT,
    UNREACHABLE,
    Answer,
    Lab,
    Netns,
    Protocol,
    ask,
    connect,
    exchange,
    machine_state,
    serve,
    until,
)

HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
REMOTE = {4: "192.0.2.2", 6: "2001:db8::2"}
DROP_ALL = "table ip t { chain c { type filter hook input priority 0; policy drop; }; }"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_both_directions_are_answered(lab: Lab, proto: Protocol, family: Literal[4, 6]):
    """Host and remote answer each other at once and see each other's own address and port."""
    with serve(lab.host, 8080, proto, family), serve(lab.remote, 8080, proto, family):
        to_host = ask(lab.remote, HOST[family], 8080, proto, source_port=4001)
        to_remote = ask(lab.host, REMOTE[family], 8080, proto, source_port=4002)
    assert to_host == Answer("host", (REMOTE[family], 4001), (HOST[family], 8080))
    assert to_remote == Answer("remote", (HOST[family], 4002), (REMOTE[family], 8080))


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_the_second_address_answers_as_itself(lab: Lab, proto: Protocol):
    """A server on the wildcard answers from the address that was asked, and a client may choose its own."""
    with serve(lab.host, 8080, proto):
        answer = ask(lab.remote, "192.0.2.10", 8080, proto)
        own = ask(lab.host, "192.0.2.1", 8080, proto, bind="192.0.2.10")
    assert isinstance(answer, Answer)
    assert answer.local == ("192.0.2.10", 8080)
    assert isinstance(own, Answer)
    assert own.peer[0] == "192.0.2.10"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_nobody_listening_is_refused(lab: Lab, proto: Protocol, family: Literal[4, 6]):
    """A port that nobody serves is refused, not waited for."""
    assert ask(lab.remote, HOST[family], 8080, proto) is REFUSED


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_dropped_packet_is_a_timeout(lab: Lab, proto: Protocol):
    """A dropping rule is told from a refusal."""
    lab.host.nft(DROP_ALL)
    with serve(lab.host, 8080, proto):
        assert ask(lab.remote, HOST[4], 8080, proto, timeout=0.2) is TIMEOUT


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_no_route_is_unreachable(lab: Lab, proto: Protocol):
    """No way to an address is told from silence."""
    lab.remote.ip("route delete default")
    assert ask(lab.remote, "203.0.113.1", 8080, proto) is UNREACHABLE


def test_a_long_connection_says_many_lines(lab: Lab):
    """One connection carries many requests, and ends with an error when the server is gone."""
    server = serve(lab.remote, 8080)
    with connect(lab.host, REMOTE[4], 8080) as connection:
        assert [connection.echo(b"%d" % number) for number in range(100)] == [b"%d" % n for n in range(100)]
        assert connection.ask().peer == connection.local
        server.close()
        with pytest.raises(OSError, match=r".+"):
            connection.echo(b"still there?")


def test_asking_often(lab: Lab):
    """A hundred requests in a row are all answered: asking needs no process and leaves nothing open."""
    with serve(lab.remote, 8080):
        answers = [ask(lab.host, REMOTE[4], 8080) for _ in range(100)]
    assert all(isinstance(answer, Answer) for answer in answers)


def test_containers_reach_each_other_and_the_remote(lab: Lab):
    """What hangs on a bridge of the host is reached directly, IPv4 and IPv6, as the host forwards."""
    lab.bridge("br0", "198.51.100.1/24", "2001:db8:1::1/64")
    gateways = {"gateway4": "198.51.100.1", "gateway6": "2001:db8:1::1"}
    one = lab.container_like("one", "br0", "198.51.100.2/24", "2001:db8:1::2/64", **gateways)
    two = lab.container_like("two", "br0", "198.51.100.3/24", "2001:db8:1::3/64", **gateways)
    with serve(one, 80), serve(one, 80, family=6):
        for client, own4, own6 in (
            (two, "198.51.100.3", "2001:db8:1::3"),
            (lab.remote, REMOTE[4], REMOTE[6]),
            (lab.host, "198.51.100.1", "2001:db8:1::1"),
        ):
            answer4, answer6 = ask(client, "198.51.100.2", 80), ask(client, "2001:db8:1::2", 80)
            assert isinstance(answer4, Answer)
            assert answer4.peer[0] == own4
            assert isinstance(answer6, Answer)
            assert answer6.peer[0] == own6


def test_settings_are_the_namespace_s_own(lab: Lab):
    """Reading and writing a setting inside leaves the machine's alone."""
    path = Path("/proc/sys/net/ipv4/ip_default_ttl")
    before = path.read_text()
    assert lab.host.sysctl("net.ipv4.ip_default_ttl", 33) == "33"
    assert lab.host.run("cat", path).stdout == "33\n"
    assert path.read_text() == before


def test_a_namespace_found_by_its_file(lab: Lab):
    """A namespace that somebody else made can be asked and served in by its file, and outlives the object."""
    sleeper = lab.remote.popen("sleep", "60")
    until(lambda: not Path(f"/proc/{sleeper.pid}/ns/net").samefile("/proc/self/ns/net"))
    with Netns.at(f"/proc/{sleeper.pid}/ns/net", "found") as found:
        serve(found, 8080)
        assert exchange(lab.host, REMOTE[4], 8080, b"hello\n")
    assert lab.remote.path.exists()
    assert ask(lab.host, REMOTE[4], 8080) is REFUSED


def test_the_host_can_be_put_back(lab: Lab):
    """Rules, links and settings that a test made are gone after a reset; the wire still works."""
    lab.bridge("br0", "198.51.100.1/24")
    lab.container_like("one", "br0", "198.51.100.2/24")
    lab.host.nft(DROP_ALL)
    lab.host.sysctl("net.ipv4.ip_forward", 0)
    lab.reset_host()
    assert lab.host.run("nft", "list", "ruleset").stdout == ""
    assert lab.host.run("ip", "-o", "link").stdout.count("\n") == 2
    assert lab.host.sysctl("net.ipv4.ip_forward") == "1"
    assert ask(lab.remote, HOST[4], 8080) is REFUSED


def test_nothing_is_left_even_after_a_failure():
    """Namespaces, links, mounts and processes are gone when the lab is, whatever happened inside."""
    names: list[Netns] = []
    pids: list[int] = []
    with contextlib.suppress(ZeroDivisionError), Lab() as lab:
        lab.bridge("br0", "198.51.100.1/24")
        names += [lab.host, lab.remote, lab.container_like("one", "br0", "198.51.100.2/24")]
        pids += [serve(lab.host, 8080).pid, lab.remote.popen("sleep", "60").pid]
        state = machine_state()
        assert all(f"\n{each.name}\n" in state for each in names)
        _ = 1 / 0
    state = machine_state()
    assert len(names) == 3
    assert not [each for each in names if each.name in state or (DIRECTORY / each.name).exists()]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
