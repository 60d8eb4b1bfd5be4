"""UDP flows follow their ports: whole passes of the program, and clients that never fall silent.

A client keeps its socket, and so its port and its flow. Each shape is shown twice: with the deletion of stale
flows, and without it, where the client is answered by whom it should not be.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Literal

import pytest

from ctrport.firewall import conntrack
from ctrport.firewall.table import Element
from ctrport.flush import flush
from ctrport.reconcile import Reconciler
from lab import REFUSED, Answer, Connection, Failure, Lab, ask, connect, failure, serve

if TYPE_CHECKING:
    from passes import Writer

Family = Literal[4, 6]
HOST: dict[int, str] = {4: "192.0.2.1", 6: "2001:db8::1"}
SECOND_ADDRESS = "192.0.2.10"
ADDRESSES = {"a": ("198.51.100.2", "2001:db8:a::2"), "b": ("198.51.100.3", "2001:db8:a::3")}
CLIENT_PORT = 5000
both_families = pytest.mark.parametrize("family", [4, 6])
every_address_or_one = pytest.mark.parametrize("host_ip", [False, True], ids=["every-address", "one-address"])


def client(lab: Lab, family: Family = 4, port: int = 8080, source_port: int = CLIENT_PORT) -> Connection:
    return connect(lab.remote, HOST[family], port, "udp", source_port=source_port)


def say(connection: Connection) -> str | Failure:
    """Send a datagram and give the name of who answers."""
    try:
        return connection.ask().name
    except OSError as error:
        return failure(error)


@pytest.fixture(params=[True, False], ids=["deleting", "not-deleting"])
def deleting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Say whether stale flows are deleted; where not, a test shows what would happen."""
    if not request.param:
        monkeypatch.setattr(conntrack, "forget_stale", lambda *_: 0)
    return bool(request.param)


def udp_flows(lab: Lab) -> dict[tuple[str, int, int], str]:
    """Give the host's UDP flows: original destination, its port, source port -> the flow's id."""
    pattern = r"src=\S+ dst=(\S+) sport=(\d+) dport=(\d+).* id=(\d+)"
    found = {}
    for family in ("ipv4", "ipv6"):
        for line in lab.host.run("conntrack", "-L", "-p", "udp", "-f", family, "-o", "id").stdout.splitlines():
            if match := re.search(pattern, line):
                found[match[1], int(match[3]), int(match[2])] = match[4]
    return found


def on(address: str, *, host_ip: bool) -> str:
    """Give the request for port 8080, on every address or on this one alone."""
    where = f"[{address}]" if ":" in address else address
    return f"{where}:8080:80/udp" if host_ip else "8080:80/udp"


# ------------------------------------------------------------------------------------------- the three shapes


@both_families
@every_address_or_one
def test_a_port_that_moved_to_another_container(writer: Writer, *, deleting: bool, family: Family, host_ip: bool):
    """A client that goes on sending is answered by the port's new container, not by the old one."""
    spec = on(HOST[family], host_ip=host_ip)
    writer.publish("a", spec)
    with client(writer.lab, family) as talking:
        assert say(talking) == "a"
        writer.end("a")
        writer.publish("b", spec)
        assert say(talking) == ("b" if deleting else "a")


@both_families
@every_address_or_one
def test_a_client_that_was_there_before_the_port(writer: Writer, *, deleting: bool, family: Family, host_ip: bool):
    """A client that sent before the publish, and was refused, is answered by the container afterwards."""
    with client(writer.lab, family) as talking:
        assert say(talking) is REFUSED
        writer.publish("a", on(HOST[family], host_ip=host_ip))
        assert say(talking) == ("a" if deleting else REFUSED)


@both_families
@every_address_or_one
def test_a_client_that_goes_on_after_the_unpublish(
    writer: Writer, *, deleting: bool, family: Family, host_ip: bool
):
    """A client that goes on sending after the port is gone is refused, not answered by a container."""
    writer.publish("a", on(HOST[family], host_ip=host_ip))
    with client(writer.lab, family) as talking:
        assert say(talking) == "a"
        writer.end("a")
        assert say(talking) == (REFUSED if deleting else "a")


def test_a_client_on_the_host_itself(writer: Writer, *, deleting: bool):
    """The host's own flows are found on 127.0.0.1, too, which is an address of every host."""
    with connect(writer.lab.host, "127.0.0.1", 8080, "udp", source_port=CLIENT_PORT) as talking:
        assert say(talking) is REFUSED
        writer.publish("a", "8080:80/udp")
        assert say(talking) == ("a" if deleting else REFUSED)


def test_rules_that_somebody_emptied(writer: Writer, *, deleting: bool):
    """A flow that began while our table was away is put right when the table is back."""
    writer.publish("a", "8080:80/udp")
    # Without any rule nothing is tracked: an operator's own table keeps conntrack at work.
    keep = "table ip keep { chain c { type filter hook prerouting priority 0; ct state new counter; }; }"
    writer.lab.host.nft(f"flush ruleset\n{keep}")
    with client(writer.lab) as talking:
        assert say(talking) is REFUSED
        writer.wait(writer.reconciler.resync())
        assert say(talking) == ("a" if deleting else REFUSED)


def test_a_writer_that_was_killed_between_rules_and_flows(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    """The next writer's first pass finds flows of mappings that it knows nothing of."""
    writer.publish("a", "8080:80/udp")
    with client(writer.lab) as talking:
        assert say(talking) == "a"
        with monkeypatch.context() as patch:
            patch.setattr(conntrack, "forget_stale", lambda *_: 0)
            writer.end("a")
        assert say(talking) == "a"
        before = writer.reconciler
        next_writer = Reconciler(before.settings, before.snapshot._client, before.kernel.nft)
        writer.wait(next_writer.resync())
        assert say(talking) is REFUSED


def test_flush_ends_flows(writer: Writer):
    """With every rule of ours gone no client is led to a container any more."""
    writer.publish("a", "8080:80/udp")
    writer.lab.host.nft("table ip keep { chain c { type filter hook prerouting priority 0; ct state new; }; }")
    with client(writer.lab) as talking:
        assert say(talking) == "a"
        assert "deleted 1 UDP flows to containers" in writer.lab.host.call(
            lambda: flush(writer.reconciler.settings)
        )
        assert say(talking) is REFUSED


# ---------------------------------------------------------------------------------------------- what is left alone


def test_other_flows_are_left_alone(writer: Writer):
    """Other ports, the same port on another address, traffic through the host, and TCP: nothing of them ends."""
    lab = writer.lab
    serve(writer.netns["a"], 8080, "udp")
    writer.publish("a", f"8081:80/udp, {SECOND_ADDRESS}:8080:80/udp, 8080:80/tcp")
    lab.remote.ip("route replace 198.51.100.0/24 via 192.0.2.1")
    with (
        connect(lab.remote, HOST[4], 8081, "udp", source_port=5001) as other_port,
        connect(lab.remote, SECOND_ADDRESS, 8080, "udp", source_port=5002) as other_address,
        connect(lab.remote, ADDRESSES["a"][0], 8080, "udp", source_port=5003) as through,
        connect(lab.remote, HOST[4], 8080, source_port=5004) as tcp,
        client(lab) as moved,
    ):
        kept = {
            (HOST[4], 8081, 5001),
            (SECOND_ADDRESS, 8080, 5002),
            (ADDRESSES["a"][0], 8080, 5003),
        }
        assert [say(c) for c in (other_port, other_address, through, tcp)] == ["a"] * 4
        assert say(moved) is REFUSED
        before = udp_flows(lab)
        writer.publish("b", f"{HOST[4]}:8080:80/udp")
        assert say(moved) == "b"
        writer.end("b")
        assert say(moved) is REFUSED
        after = udp_flows(lab)
        assert [say(c) for c in (other_port, other_address, through, tcp)] == ["a"] * 4
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_a_flow_that_leads_right_is_kept(writer: Writer):
    """A flow that has begun since the rules are in belongs to them: a full check leaves it as it is."""
    writer.publish("a", "8080:80/udp")
    with client(writer.lab) as talking:
        assert say(talking) == "a"
        before = udp_flows(writer.lab)
        elements = writer.reconciler.table().elements
        assert writer.lab.host.call(lambda: conntrack.forget_stale(elements, 0x10000)) == 0
        assert udp_flows(writer.lab) == before


def test_somebody_else_s_translation_is_left_alone(writer: Writer):
    """A UDP port that another table translates, and we do not publish, keeps its flows."""
    writer.lab.host.nft(
        "table ip other { chain c { type nat hook prerouting priority dstnat; "
        "udp dport 8080 dnat to 198.51.100.2:80; }; }"
    )
    with client(writer.lab) as talking:
        assert say(talking) == "a"
        before = udp_flows(writer.lab)
        assert writer.lab.host.call(lambda: conntrack.forget_stale({}, 0x10000)) == 0
        assert udp_flows(writer.lab) == before


# ------------------------------------------------------------------------------------------------- cost and failure


def test_without_a_change_of_udp_the_kernel_is_not_asked(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    """TCP mappings come and go, and passes find nothing to do, without one look at the flows."""
    asked: list[int] = []

    class Spy(conntrack.Netlink):
        def __init__(self, protocol: int) -> None:
            asked.append(protocol)
            super().__init__(protocol)

    monkeypatch.setattr(conntrack, "Netlink", Spy)
    writer.publish("a", "8080:80/tcp")
    writer.wait(writer.reconciler.resync())
    writer.end("a")
    assert asked == []
    writer.publish("b", "8080-8089:80-89/udp")
    assert asked == [conntrack.NETLINK_NETFILTER]


def test_many_flows_of_many_ports_are_judged_in_one_look(writer: Writer):
    """A thousand ports change among ten thousand flows: two dumps, under a second, and the right ones go."""
    host = writer.lab.host
    sender = writer.lab.remote.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    for port in range(20000, 30000):
        sender.sendto(b"x", (HOST[4], port))
    sender.close()
    assert len(udp_flows(writer.lab)) == 10000
    elements = {
        "published4": {
            f"udp . {port}": Element(f"udp . {port}", f"198.51.100.2 . {port}") for port in range(20000, 21000)
        }
    }
    deleted = host.call(lambda: conntrack.forget_stale(elements, 0x10000, set(range(20000, 21000))))
    assert deleted == 1000
    assert min(port for _, port, _ in udp_flows(writer.lab)) == 21000


def test_a_kernel_that_refuses_is_a_line_in_the_log(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The pass succeeds, the port is published, and the log says what could not be done."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(conntrack, "Netlink", refuse)
    writer.publish("a", "8080:80/udp")
    assert isinstance(ask(writer.lab.remote, HOST[4], 8080, "udp"), Answer)
    assert "could not look for UDP flows to earlier containers" in caplog.text
