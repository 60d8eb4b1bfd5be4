"""TCP from [::1] to containers by the watcher's relay: whole passes, real packets, and what ends how."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.host import facts, relay
from ctrport.model.workload import Key
from lab import REFUSED, RESET, Answer, Lab, Netns, ask, connect, serve, until
from passes import Writer, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GATEWAY = {4: "198.51.100.1", 6: "2001:db8:a::1"}  # the host on the containers' bridge
SIZE = 10 << 20  # bytes
RESETTING = struct.pack("ii", 1, 0)


@pytest.fixture
def relaying(lab: Lab, tmp_path: Path) -> Iterator[Writer]:
    with writing(lab, tmp_path, relay_ipv6_loopback=True) as made:
        yield made


def add_ipv4_only(writer: Writer) -> None:
    """Give the writer a third container, `c`, that has no IPv6 address."""
    writer.netns["c"] = writer.lab.container_like("c", "br0", "198.51.100.4/24", gateway4=GATEWAY[4])
    writer.servers["c"] = [serve(writer.netns["c"], 80)]


def seen(answer: object) -> object:
    return (answer.name, answer.peer[0]) if isinstance(answer, Answer) else answer


def from_loopback(writer: Writer, port: int = 8080) -> object:
    return seen(ask(writer.lab.host, "::1", port))


@contextlib.contextmanager
def program(ns: Netns, port: int, act: Callable[[socket.socket], Any]) -> Iterator[concurrent.futures.Future[Any]]:
    """Serve one connection in a container by a function; gives what it returns."""
    listener = ns.call(lambda: socket.create_server(("::", port), family=socket.AF_INET6))
    listener.settimeout(20)

    def work() -> Any:
        opened, _ = listener.accept()
        opened.settimeout(20)
        with opened:
            return act(opened)

    with listener, concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def read_all(opened: socket.socket, into: bytearray | None = None) -> bytes:
    found = bytearray() if into is None else into
    while part := opened.recv(1 << 16):
        found += part
    return bytes(found)


def client(writer: Writer, port: int = 8080) -> socket.socket:
    return connect(writer.lab.host, "::1", port, timeout=20).socket


# ------------------------------------------------------------------------------------------------ who is reached


def test_a_published_port_answers_on_ipv6_loopback(relaying: Writer):
    """The container sees the host's address on its bridge; other ways to the port are as without a relay."""
    relaying.publish("a", "8080:80")
    assert from_loopback(relaying) == ("a", GATEWAY[6])
    assert seen(ask(relaying.lab.remote, "2001:db8::1", 8080)) == ("a", "2001:db8::2")
    assert seen(ask(relaying.lab.host, "127.0.0.1", 8080)) == ("a", GATEWAY[4])
    assert from_loopback(relaying, 8081) is REFUSED


def test_without_a_relay_it_is_refused_at_once(writer: Writer):
    """Nothing listens on [::1] unless the configuration says so."""
    writer.publish("a", "8080:80")
    assert from_loopback(writer) is REFUSED
    assert writer.lab.host.run("ss", "-Hlt").stdout == ""
    writer.publish("b", "[::1]:8081:80")
    ((state, reason),) = writer.states("b")
    assert state == "refused"
    assert "relay_ipv6_loopback" in reason


def test_a_container_without_ipv6_is_reached_over_ipv4(relaying: Writer):
    """Published on every address and on [::1]: both are relayed to the address that there is."""
    add_ipv4_only(relaying)
    relaying.publish("c", "8080:80 [::1]:8081:80")
    assert [state for state, _ in relaying.states("c")] == ["active", "active"]
    assert [from_loopback(relaying, port) for port in (8080, 8081)] == [("c", GATEWAY[4])] * 2
    assert ask(relaying.lab.host, "2001:db8::1", 8080) is REFUSED


def test_a_program_that_serves_ipv4_alone_is_reached(relaying: Writer):
    """The container has an IPv6 address and refuses there: the client could not try on by itself."""
    with serve(relaying.netns["a"], 85):
        relaying.publish("a", "8080:85")
        assert from_loopback(relaying) == ("a", GATEWAY[4])


def test_published_on_ipv6_loopback_alone(relaying: Writer):
    """Nobody else reaches it, and no rule speaks of it."""
    relaying.publish("a", "[::1]:8080:80")
    assert relaying.states("a") == [("active", "")]
    assert from_loopback(relaying) == ("a", GATEWAY[6])
    assert ask(relaying.lab.host, "127.0.0.1", 8080) is REFUSED
    assert ask(relaying.lab.host, "2001:db8::1", 8080) is REFUSED
    assert ask(relaying.lab.remote, "2001:db8::1", 8080) is REFUSED
    assert "8080" not in relaying.lab.host.run("nft", "list", "table", "inet", "ctrport").stdout


@pytest.mark.parametrize(
    "publish", ["0.0.0.0:8080:80", "192.0.2.1:8080:80", "[2001:db8::1]:8080:80", "8080:80/udp"]
)
def test_what_is_not_published_there_is_not_relayed(relaying: Writer, publish: str):
    """Other addresses and other protocols."""
    relaying.publish("a", publish)
    assert relaying.states("a") == [("active", "")]
    assert from_loopback(relaying) is REFUSED


def test_who_has_the_port_for_ipv6_comes_first(relaying: Writer):
    """8080 of a container without IPv6, and [::]:8080 of another: [::1] is the other's, as long as it is there."""
    add_ipv4_only(relaying)
    relaying.publish("c", "8080:80")
    assert from_loopback(relaying) == ("c", GATEWAY[4])
    relaying.publish("a", "[::]:8080:80")
    assert from_loopback(relaying) == ("a", GATEWAY[6])
    relaying.wait(relaying.reconciler.resync())
    assert from_loopback(relaying) == ("a", GATEWAY[6])
    relaying.end("a")
    relaying.wait(relaying.reconciler.resync())
    assert from_loopback(relaying) == ("c", GATEWAY[4])


# ---------------------------------------------------------------------------------------------------- the bytes


def test_fifty_connections_at_a_time(relaying: Writer):
    """Each is its own, and all are open together."""
    relaying.publish("a", "8080:80")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(relaying.lab.host, "::1", 8080, timeout=10)) for _ in range(50)]
        words = [f"word {n}".encode() for n in range(50)]
        assert [each.echo(word) for each, word in zip(opened, words, strict=True)] == words
        assert len({each.ask().peer for each in opened}) == 50


def test_ten_megabytes_there_and_back_with_half_closed_connections(relaying: Writer):
    """The server answers after the client's end of data, over a connection that is closed in one direction."""
    relaying.publish("a", "8080:88")
    sent, answer = os.urandom(SIZE), os.urandom(SIZE)

    def act(opened: socket.socket) -> str:
        got = read_all(opened)
        opened.sendall(answer)
        return hashlib.sha256(got).hexdigest()

    with program(relaying.netns["a"], 88, act) as served, client(relaying) as opened:
        opened.sendall(sent)
        opened.shutdown(socket.SHUT_WR)
        assert read_all(opened) == answer
        assert served.result(20) == hashlib.sha256(sent).hexdigest()


def test_a_server_that_ends_first_is_still_told_everything(relaying: Writer):
    """The other half: the server's end of data is passed on, and what the client sends after it arrives."""
    relaying.publish("a", "8080:88")
    sent, answer = os.urandom(SIZE), os.urandom(SIZE)

    def act(opened: socket.socket) -> bytes:
        opened.sendall(answer)
        opened.shutdown(socket.SHUT_WR)
        return read_all(opened)

    with program(relaying.netns["a"], 88, act) as served:
        with client(relaying) as opened:
            assert read_all(opened) == answer
            opened.sendall(sent)
        assert served.result(20) == sent


def test_both_directions_at_a_time(relaying: Writer):
    """An echo of ten megabytes, while they are sent."""
    relaying.publish("a", "8080:88")
    sent = os.urandom(SIZE)

    def act(opened: socket.socket) -> None:
        while part := opened.recv(1 << 16):
            opened.sendall(part)

    with program(relaying.netns["a"], 88, act), client(relaying) as opened:

        def send() -> None:
            opened.sendall(sent)
            opened.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert read_all(opened) == sent
        sender.join()


def test_a_slow_reader_slows_the_writer_down(relaying: Writer):
    """What a server does not read is not taken from the client without end, and none of it is lost."""
    relaying.publish("a", "8080:88")
    stalled = threading.Event()

    def act(opened: socket.socket) -> int:
        stalled.wait(20)
        return len(read_all(opened))

    with program(relaying.netns["a"], 88, act) as served:
        with client(relaying) as opened:
            opened.settimeout(0.5)
            total = 0
            with contextlib.suppress(TimeoutError):
                while total < 1 << 30:
                    total += opened.send(bytes(1 << 16))
            stalled.set()
        assert served.result(20) == total < 1 << 26


def test_a_reset_comes_after_the_data_before_it(relaying: Writer):
    """A server that is cut off: the client has all that was sent, and is not told that this was the end."""
    relaying.publish("a", "8080:88")
    sent = os.urandom(SIZE)

    def act(opened: socket.socket) -> None:
        opened.sendall(sent)
        until(lambda: relay._unsent(opened) == 0, within=10)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETTING)

    with program(relaying.netns["a"], 88, act) as served, client(relaying) as opened:
        got = bytearray()
        with pytest.raises(ConnectionResetError):
            read_all(opened, got)
        assert got == sent
        served.result(20)


def test_a_client_that_resets_is_no_regular_end(relaying: Writer):
    """The server must not take half an upload for a whole one."""
    relaying.publish("a", "8080:88")
    with program(relaying.netns["a"], 88, read_all) as served:
        with client(relaying) as opened:
            opened.sendall(b"half")
            until(lambda: relay._unsent(opened) == 0)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETTING)
        with pytest.raises(ConnectionResetError):
            served.result(20)


# --------------------------------------------------------------------------------------------- what is not there


def test_a_container_that_refuses(relaying: Writer):
    """Nobody serves the port: the client is cut off at once, and does not wait."""
    relaying.publish("a", "8080:89")
    assert from_loopback(relaying) is RESET


def test_a_container_that_is_silent(relaying: Writer, monkeypatch: pytest.MonkeyPatch):
    """Packets to it are dropped: the client is cut off when patience is at its end."""
    monkeypatch.setattr(relay, "CONNECT_PATIENCE", 0.2)
    relaying.publish("a", "8080:80")
    relaying.netns["a"].nft("table inet t { chain c { type filter hook input priority 0; tcp dport 80 drop; }; }")
    assert from_loopback(relaying) is RESET


def test_more_connections_than_are_allowed(
    relaying: Writer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The next one is cut off at once, those that are open stay, and there is room again when one ends."""
    monkeypatch.setattr(relay, "LIMIT", 3)
    relaying.publish("a", "8080:80")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(relaying.lab.host, "::1", 8080)) for _ in range(3)]
        assert [each.echo(b"x") for each in opened] == [b"x"] * 3
        assert [from_loopback(relaying) for _ in range(2)] == [RESET] * 2
        assert [each.echo(b"y") for each in opened] == [b"y"] * 3
        opened[0].close()
        until(lambda: from_loopback(relaying) == ("a", GATEWAY[6]))
    assert caplog.text.count("[::1]:8080 has 3 connections: further ones are reset") == 1


def test_out_of_descriptors(relaying: Writer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """No connection is taken for a while, which the log tells; then those that waited are served."""
    monkeypatch.setattr(relay, "ACCEPT_PAUSE", 0.2)
    relaying.publish("a", "8080:80")
    accept, failures = socket.socket.accept, [OSError(24, "Too many open files")]

    def refuse(self: socket.socket) -> Any:
        if self.getsockname()[:2] == ("::1", 8080) and failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", refuse)
    assert from_loopback(relaying) == ("a", GATEWAY[6])
    assert "no connection to [::1]:8080 is taken for 0 s: [Errno 24] Too many open files" in caplog.text


# ------------------------------------------------------------------------------------------- coming and going


def test_unpublished(relaying: Writer):
    """Refused at once, what was open is cut off, and another program can have the port."""
    relaying.publish("a", "8080:80")
    relaying.publish("b", "8081:80")
    with connect(relaying.lab.host, "::1", 8080) as one, connect(relaying.lab.host, "::1", 8081) as other:
        assert (one.echo(b"x"), other.echo(b"x")) == (b"x", b"x")
        relaying.end("a")
        with pytest.raises(ConnectionResetError):
            one.echo(b"y")
        assert from_loopback(relaying) is REFUSED
        assert other.echo(b"y") == b"y"
        with serve(relaying.lab.host, 8080, family=6, bind="::1"):
            assert from_loopback(relaying) == ("host", "::1")


def test_a_port_goes_to_who_waits_for_it(relaying: Writer):
    """From one container to another in one pass, also when the one has no IPv6: what is held changes then."""
    add_ipv4_only(relaying)
    for first, second in (("a", "b"), ("c", "a")):
        relaying.publish(first, "8080:80")
        relaying.publish(second, "0.0.0.0:8080:80 [::]:8080:80" if first == "c" else "8080:80")
        assert from_loopback(relaying)[0] == ("a" if first == "c" else first)  # type: ignore[index]
        relaying.end(first)
        assert {state for state, _ in relaying.states(second)} == {"active"}
        assert from_loopback(relaying) == (second, GATEWAY[6])
        assert not can_bind(relaying, "::", socket.SO_REUSEADDR)
        relaying.end(second)


def test_a_full_pass_leaves_connections_alone(relaying: Writer):
    """And one whose rules had to be replaced does, too."""
    relaying.publish("a", "8080:80")
    with connect(relaying.lab.host, "::1", 8080) as opened:
        assert opened.echo(b"x") == b"x"
        relaying.lab.host.nft("flush ruleset")
        for _ in range(2):
            relaying.wait(relaying.reconciler.resync())
        assert opened.echo(b"y") == b"y"


def test_the_next_watcher_relays_at_once(lab: Lab, tmp_path: Path):
    """With what is left of the last one's connections (TIME_WAIT), which it had ended first."""
    for _ in range(2):
        with writing(lab, tmp_path, relay_ipv6_loopback=True) as writer:
            writer.publish("a", "8080:88")
            with program(writer.netns["a"], 88, lambda _: None) as served, client(writer) as opened:
                assert read_all(opened) == b""
                served.result(20)
            until(lambda: "TIME-WAIT" in lab.host.run("ss", "-Hat", "sport = :8080").stdout)
        lab.host.ip("link delete br0")
        for ns in writer.netns.values():
            ns.close()


# ---------------------------------------------------------------------------------------------- other programs


def can_bind(writer: Writer, address: str, *options: int) -> bool:
    def attempt() -> bool:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        with made:
            if ":" in address:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for option in options:
                made.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                made.bind((address, 8080))
            except OSError as error:
                assert error.strerror == "Address already in use"  # noqa: PT017 - others are failures
                return False
            return True

    return writer.lab.host.call(attempt)


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT, socket.SO_REUSEADDR)])
@pytest.mark.parametrize("publish", ["8080:80", "[::1]:8080:80"])
def test_nobody_else_can_bind_a_relayed_port(relaying: Writer, publish: str, options: tuple[int, ...]):
    """Held for every address, and relayed on one of them; with a connection open, too."""
    relaying.publish("a", publish)
    wildcard = publish == "8080:80"
    addresses = {"::1": False, "::": False, "2001:db8::1": not wildcard, "127.0.0.1": not wildcard}
    assert {a: can_bind(relaying, a, *options) for a in addresses} == addresses
    with connect(relaying.lab.host, "::1", 8080) as opened:
        assert opened.echo(b"x") == b"x"
        assert {a: can_bind(relaying, a, *options) for a in addresses} == addresses


def test_relaying_without_holding(lab: Lab, tmp_path: Path):
    """With reserve_ports = false the relay has its own socket and no more."""
    with writing(lab, tmp_path, relay_ipv6_loopback=True, reserve_ports=False) as writer:
        writer.publish("a", "8080:80")
        assert from_loopback(writer) == ("a", GATEWAY[6])
        assert [can_bind(writer, a) for a in ("::1", "::", "127.0.0.1")] == [False, False, True]
        writer.end("a")
        assert from_loopback(writer) is REFUSED


def test_what_relays_is_no_listener_of_the_host(relaying: Writer):
    """No process of ours takes it for another program's; others in the same place are seen."""
    relaying.publish("a", "8080:80")
    assert relaying.lab.host.call(facts.listeners) == ()
    with serve(relaying.lab.host, 8090, family=6, bind="::1"):
        (found,) = relaying.lab.host.call(facts.listeners)
    assert (str(found.address), found.port) == ("::1", 8090)


def test_a_program_on_ipv6_loopback_beside_a_container_without_ipv6(
    relaying: Writer, caplog: pytest.LogCaptureFixture
):
    """It keeps what it has and the log says so; IPv4 is published, and the rest once the program has ended."""
    add_ipv4_only(relaying)
    with serve(relaying.lab.host, 8080, family=6, bind="::1"):
        relaying.publish("c", "8080:80")
        assert relaying.states("c") == [("active", "")]
        assert seen(ask(relaying.lab.remote, "192.0.2.1", 8080)) == ("c", "192.0.2.2")
        assert from_loopback(relaying) == ("host", "::1")
        for _ in range(2):
            relaying.wait(relaying.reconciler.resync())
    told = "1 published ports are not relayed from [::1]: port 8080: another program has it"
    assert [r.getMessage() for r in caplog.records if "relayed" in r.getMessage()] == [told]
    relaying.wait(relaying.reconciler.resync())
    assert from_loopback(relaying) == ("c", GATEWAY[4])


def test_a_thousand_ports(relaying: Writer):
    """All of them answer, and are let go again."""
    relaying.publish("a", " ".join(f"{n}:80" for n in range(20000, 21000)))
    assert {from_loopback(relaying, n) for n in (20000, 20500, 20999)} == {("a", GATEWAY[6])}
    relaying.end("a")
    assert relaying.lab.host.run("ss", "-Hlt").stdout == ""
    assert relaying.reconciler.bindings(Key("default", "a")) == ()
