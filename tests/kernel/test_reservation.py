"""Published ports are held against other programs, and the sockets that hold them answer nobody."""

from __future__ import annotations

import re
import resource
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ctrport.claims import Claims
from ctrport.errors import KernelError
from ctrport.host import facts, reservation
from ctrport.host.reservation import Reservation
from ctrport.model import ports
from ctrport.model.bindings import State
from ctrport.model.ledger import Ledger
from ctrport.model.workload import Endpoint, Key, Workload
from lab import REFUSED, Answer, Lab, ask, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.model.bindings import Binding, Change
    from passes import Writer

HOST: dict[int, str] = {4: "192.0.2.1", 6: "2001:db8::1"}
WILDCARD: dict[int, str] = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - inside the lab
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
IPV4, IPV6 = IPv4Address("198.51.100.2"), IPv6Address("2001:db8:a::2")
Proto = Literal["tcp", "udp"]
Family = Literal[4, 6]
tcp_and_udp = pytest.mark.parametrize("proto", ["tcp", "udp"])
both_families = pytest.mark.parametrize("family", [4, 6])


class Host:
    """A ledger and a reservation in the namespace of a lab's host."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ledger = Ledger()
        self.reservation = lab.host.call(Reservation)

    def close(self) -> None:
        self.reservation.close()

    def publish(self, publish: str, name: str = "web", *, ipv6: bool = True) -> tuple[Binding, ...]:
        mappings, errors = ports.parse_list(publish)
        assert not errors
        key = Key("default", name)
        endpoint = Endpoint(ipv4=IPV4, ipv6=IPV6 if ipv6 else None)
        self.ledger.put(Workload(key=key, created_at=1, requests=mappings, endpoint=endpoint))
        self.settle()
        return self.ledger.bindings(key)

    def unpublish(self, name: str = "web") -> None:
        self.ledger.remove(Key("default", name))
        self.settle()

    def settle(self) -> list[Change]:
        return self.lab.host.call(lambda: Claims(self.reservation).settle(self.ledger))

    def bind(self, proto: Proto, address: str, port: int, *options: int, v6only: bool = True) -> socket.socket:
        """Bind as another program would; options are of SOL_SOCKET."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, KINDS[proto])
            if ":" in address:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
            for option in options:
                made.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                made.bind((address, port))
            except OSError:
                made.close()
                raise
            return made

        return self.lab.host.call(make)

    def taken(self, proto: Proto, address: str, port: int, *options: int, v6only: bool = True) -> bool:
        try:
            self.bind(proto, address, port, *options, v6only=v6only).close()
        except OSError as error:
            assert error.strerror == "Address already in use"  # noqa: PT017 - others are failures
            return True
        return False


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    made = Host(lab)
    yield made
    made.close()


# --------------------------------------------------------------------------------------------- held, and let go


@tcp_and_udp
@both_families
@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT, socket.SO_REUSEADDR)])
def test_nobody_else_can_bind_a_published_port(host: Host, proto: Proto, family: Family, options: tuple[int, ...]):
    """Neither every address, nor one, nor loopback, whatever options servers set; and at once after unpublish."""
    loopback = {4: "127.0.0.1", 6: "::1"}[family]
    addresses = (WILDCARD[family], HOST[family], loopback)
    host.publish(f"8080:80/{proto}")
    assert [host.taken(proto, address, 8080, *options) for address in addresses] == [True] * 3
    assert not host.taken(proto, WILDCARD[family], 8081, *options)
    host.unpublish()
    for address in addresses:
        host.bind(proto, address, 8080, *options).close()


@tcp_and_udp
@both_families
def test_one_host_ip_is_held_and_no_other(host: Host, proto: Proto, family: Family):
    """A publish on one address leaves the others to other programs."""
    where = {4: HOST[4], 6: f"[{HOST[6]}]"}[family]
    host.publish(f"{where}:8080:80/{proto}")
    assert host.taken(proto, HOST[family], 8080)
    assert host.taken(proto, WILDCARD[family], 8080)
    assert not host.taken(proto, {4: "127.0.0.1", 6: "::1"}[family], 8080)


@tcp_and_udp
def test_only_what_is_served_is_held(host: Host, proto: Proto):
    """A container without IPv6 leaves [::] to others, unless theirs would take IPv4 as well; so does 0.0.0.0."""
    for publish, ipv6 in ((f"8080:80/{proto}", False), (f"0.0.0.0:8080:80/{proto}", True)):
        host.publish(publish, ipv6=ipv6)
        assert host.taken(proto, "0.0.0.0", 8080)  # noqa: S104
        assert not host.taken(proto, "::", 8080)
        assert host.taken(proto, "::", 8080, v6only=False)
        host.unpublish()


def test_tcp_and_udp_are_held_apart(host: Host):
    """53/tcp leaves 53/udp alone, and SCTP is not held."""
    host.publish("53:53/tcp 53:53/sctp")
    assert host.taken("tcp", "0.0.0.0", 53)  # noqa: S104
    assert not host.taken("udp", "0.0.0.0", 53)  # noqa: S104
    assert len(host.reservation) == 1


def test_a_port_that_goes_from_one_container_to_another_stays_held(host: Host):
    """In one step: there is no moment at which somebody else could take it."""
    host.publish("8080:80", "one")
    before = dict(host.reservation._held)
    host.publish("8080:80", "two")
    host.unpublish("one")
    assert host.ledger.bindings(Key("default", "two"))[0].state is State.ACTIVE
    assert host.reservation._held == before
    assert host.taken("tcp", "0.0.0.0", 8080)  # noqa: S104


def test_our_own_sockets_are_no_listeners(host: Host):
    """What holds ports is not taken for a program of the host, by this process or another."""
    host.publish("8080:80 8080:80/udp")
    assert len(host.reservation) == 2
    assert host.lab.host.call(facts.listeners) == ()


# ------------------------------------------------------------------------------------------ answering nobody


@tcp_and_udp
@both_families
@pytest.mark.parametrize("published", ["8080:80", "host-ip"])
def test_a_packet_that_meets_no_mapping_is_refused(host: Host, proto: Proto, family: Family, published: str):
    """Held and not in the table: refused at once, from afar and from the host, and never swallowed in silence."""
    where = {4: HOST[4], 6: f"[{HOST[6]}]"}[family]
    host.publish(f"{where}:8080:80/{proto}" if published == "host-ip" else f"8080:80/{proto}")
    assert ask(host.lab.remote, HOST[family], 8080, proto) is REFUSED
    assert ask(host.lab.host, HOST[family], 8080, proto) is REFUSED


def test_a_plain_udp_socket_would_swallow_packets(host: Host):
    """The reason for the interface that does not exist: bound without it, the client waits for nothing."""
    with host.bind("udp", "0.0.0.0", 8080):  # noqa: S104
        answer = ask(host.lab.remote, HOST[4], 8080, "udp", timeout=0.2)
    assert answer is not REFUSED


# --------------------------------------------------------------------------------------------- who is in the way


@tcp_and_udp
@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "127.0.0.1"])  # noqa: S104
def test_a_program_that_came_first_keeps_its_port(host: Host, proto: Proto, address: str):
    """The ledger has not heard of it; `bind` finds it out, nothing is published, and its name is told."""
    with serve(host.lab.host, 8080, proto, bind=address) as server:
        (binding,) = host.publish(f"8080:80/{proto}")
        assert binding.state is State.WAITING
        expected = rf"{re.escape(address)}:8080/{proto} is held by \S+ \(pid {server.pid}\)"
        assert re.fullmatch(expected, binding.reason)
        assert len(host.reservation) == 0


def test_a_pool_takes_the_next_port(host: Host):
    """8080 is bound by a program that does not listen yet, so that no list has it: the pool gives 8081."""
    with host.bind("tcp", "127.0.0.1", 8080, socket.SO_REUSEADDR) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        assert host.lab.host.call(facts.listeners) == ()
        (binding,) = host.publish("8080-8085:80")
    assert (binding.state, binding.host_port) == (State.ACTIVE, 8081)
    assert len(host.reservation) == 1


def test_what_a_failed_attempt_gave_out_is_tried_again(host: Host, monkeypatch: pytest.MonkeyPatch):
    """The kernel fails to say who has 8080: the next attempt still finds out that it cannot be published."""

    def refuse(*_: object) -> None:
        raise KernelError("the kernel refused to list sockets")

    with host.bind("tcp", "0.0.0.0", 8080):  # noqa: S104
        with monkeypatch.context() as patch:
            patch.setattr(facts, "sockets", refuse)
            with pytest.raises(KernelError):
                host.publish("8080:80 8081:81")
        changes = host.settle()
        bindings = host.ledger.bindings(Key("default", "web"))
    assert [(b.host_port, b.state) for b in bindings] == [(8080, State.WAITING), (8081, State.ACTIVE)]
    assert [(c.old, c.new) for c in changes] == [(None, b) for b in bindings]
    assert len(host.reservation) == 1


def test_connections_and_what_is_left_of_them_are_no_conflict(host: Host):
    """An outgoing connection's own port, TIME_WAIT and CLOSE_WAIT: published all the same."""

    def connections() -> list[socket.socket]:
        ours = [socket.create_server(("127.0.0.1", port)) for port in (7001, 7002)]
        outgoing = socket.create_connection(("127.0.0.1", 7001), source_address=("127.0.0.1", 7101))
        half_closed = socket.create_connection(("127.0.0.1", 7001), source_address=("127.0.0.1", 7102))
        accepted = [ours[0].accept()[0] for _ in range(2)]
        accepted[1].close()  # 7102 is left in CLOSE_WAIT
        visitor = socket.create_connection(("127.0.0.1", 7002))
        served, _ = ours[1].accept()
        served.close()  # first: 7002 is left in TIME_WAIT
        visitor.close()
        ours.pop().close()
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        asking.bind(("127.0.0.1", 7103))
        asking.connect(("127.0.0.1", 7001))
        return [*ours, outgoing, half_closed, accepted[0], asking]

    opened = host.lab.host.call(connections)
    bindings = host.publish("7101:80 7102:80 7002:80 7103:80/udp")
    assert [(b.state, b.reason) for b in bindings] == [(State.ACTIVE, "")] * 4
    assert host.taken("tcp", "0.0.0.0", 7002, socket.SO_REUSEADDR)  # noqa: S104 - held in spite of TIME_WAIT
    for each in opened:
        each.close()
    active = [b for key in host.ledger.owners() for b in host.ledger.bindings(key)]
    host.lab.host.call(lambda: host.reservation.retry(active))
    assert host.taken("udp", "0.0.0.0", 7103)  # noqa: S104 - held as soon as the connection has ended


def test_a_full_pass_lets_go_what_no_binding_wants(host: Host):
    """What a pass that failed did not let go does not stay for ever."""
    bindings = host.publish("8080:80 8081:81")
    host.lab.host.call(lambda: host.reservation.retry(bindings[1:]))
    assert [host.taken("tcp", WILDCARD[4], port) for port in (8080, 8081)] == [False, True]


def test_what_cannot_be_held_is_published_all_the_same(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Out of open files: one line in the log for all, once, and the ports are given out."""
    made = socket.socket

    def refuse(family: int, *rest: Any) -> socket.socket:
        if family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(24, "Too many open files")
        return made(family, *rest)

    monkeypatch.setattr(socket, "socket", refuse)
    bindings = host.publish("8000-8009:80-89")
    monkeypatch.undo()
    assert {b.state for b in bindings} == {State.ACTIVE}
    (said,) = [r.getMessage() for r in caplog.records]
    assert re.fullmatch(
        r"10 published ports are not held against other programs: 800\d/tcp: Too many open files", said
    )


def test_more_ports_than_open_files(host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """What is left of the limit is not held but published: other work goes on needing open files."""
    monkeypatch.setattr(reservation, "_raise_limit", lambda: reservation.SPARE + 4)
    host.reservation = reservation.Reservation()
    bindings = host.publish("8000-8009:80-89")
    assert {b.state for b in bindings} == {State.ACTIVE}
    assert len(host.reservation) == 4
    assert "6 published ports are not held against other programs" in caplog.text


# ------------------------------------------------------------------------------------------------- many at once


def test_ten_thousand_ports(host: Host):
    """For IPv4 and IPv6, with a limit of open files that was raised for them."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 10100
    bindings = host.publish("20000-29999:20000-29999")
    assert {b.state for b in bindings} == {State.ACTIVE}
    assert len(host.reservation) == 10000
    assert host.taken("tcp", "0.0.0.0", 29999)  # noqa: S104
    host.unpublish()
    assert len(host.reservation) == 0


# ------------------------------------------------------------------------------------------------- whole passes


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_listener_of_the_host_is_named_and_makes_way(writer: Writer, proto: Literal["tcp", "udp"]):
    """A port that a program has is refused with the program's name and pid, and published when it has ended."""
    server = serve(writer.lab.host, 8080, proto)
    writer.publish("a", f"8080:80/{proto}")
    (state, reason), *_ = writer.states("a")
    assert state == "waiting"
    assert re.fullmatch(rf"0\.0\.0\.0:8080/{proto} is held by python3?\S* \(pid {server.pid}\)", reason)
    server.close()
    writer.wait(writer.reconciler.resync())
    assert writer.states("a") == [("active", "")]
    answer = ask(writer.lab.remote, HOST[4], 8080, proto)
    assert isinstance(answer, Answer)
    assert answer.name == "a"


def test_a_program_that_has_bound_and_not_listened_keeps_its_port(writer: Writer):
    """No list of listeners has it; the watcher learns of it by `bind`, and does not publish."""
    held = writer.lab.host.call(lambda: socket.create_server(("", 8080)))
    held.close()
    bound = writer.lab.host.call(lambda: _bound(socket.SOCK_STREAM, 8080))
    assert [x for x in writer.lab.host.call(facts.listeners) if x.port == 8080] == []
    writer.publish("a", "8080-8081:80")
    assert writer.states("a") == [("active", "")]
    (binding,) = writer.reconciler.bindings(Key("default", "a"))
    assert binding.host_port == 8081
    writer.publish("b", "8080:80")
    (state, reason), *_ = writer.states("b")
    assert (state, reason.split(" (pid")[0][:31]) == ("waiting", "0.0.0.0:8080/tcp is held by pyt")
    bound.close()
    writer.wait(writer.reconciler.resync())
    assert writer.states("b") == [("active", "")]


def test_a_published_port_is_taken_until_it_is_unpublished(writer: Writer):
    """Another program's bind fails while the container runs, and succeeds at once when it has ended."""
    writer.publish("a", "8080:80, 8080:80/udp")
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with pytest.raises(OSError, match="Address already in use"):
            writer.lab.host.call(lambda kind=kind: _bound(kind, 8080))
    writer.end("a")
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        writer.lab.host.call(lambda kind=kind: _bound(kind, 8080)).close()


def _bound(kind: int, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.bind(("", port))
    return made
