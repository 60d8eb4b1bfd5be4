"""TCP from [::1] to containers, passed on by this process: the one way that the kernel has no rule for.

A packet from ::1 cannot leave the host, so no translation leads it to a container. Where the configuration says so
the watcher listens on [::1] for each published TCP port and passes the bytes on, to the container's IPv6 address
or, where it has none or refuses there, to its IPv4 address. The container sees the host's address on its bridge.

What ends on one side ends on the other in the same way: an end of data is passed on and leaves the other direction
open, a reset becomes a reset once all that came before it has arrived. Bytes are read only after those before
them were taken, so a slow reader slows the writer down. Who may have a port is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import socket
import struct
import termios
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ctrport.host import facts, sockdiag
from ctrport.host.reservation import SO_BINDTOIFINDEX
from ctrport.model.bindings import IPV6_LOOPBACK, State, is_wildcard
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrport.host.reservation import Reservation
    from ctrport.model.bindings import Binding, Change, IPAddress

log = logging.getLogger(__name__)
LIMIT = 512  # connections of one port at a time; further ones are reset at once
BACKLOG = 1024  # connections that wait to be accepted
CONNECT_PATIENCE = 3.0  # seconds for each address of a container
DELIVERY_PATIENCE = 1.0  # seconds for the last bytes to arrive before a reset
ACCEPT_PAUSE = 1.0  # seconds, when there are no descriptors left
CHUNK = 1 << 16  # bytes read at a time, and so kept for each direction
LINGER_NOT = struct.pack("ii", 1, 0)  # struct linger: close by a reset


@dataclass(slots=True, eq=False)
class Port:
    """One port that is relayed, and its connections."""

    binding: Binding
    listener: socket.socket
    connections: set[asyncio.Task[None]] = field(default_factory=set)
    full: bool = False  # told to the log


class Relay:
    """The relayed ports of one process, inside `async with`; on leaving it all connections are cut."""

    def __init__(self) -> None:
        self._ports: dict[int, Port] = {}
        self._told: dict[int, str] = {}  # failures that the log has already
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        for number in tuple(self._ports):
            self._close(number)
        await self._group.__aexit__(*failure)  # type: ignore[arg-type]

    async def end(self, changes: Iterable[Change]) -> None:
        """Listen no more for bindings that have ended or changed, and cut their connections."""
        for change in changes:
            number = change.old.host_port if change.old else None
            if number is not None and (port := self._ports.get(number)) and port.binding == change.old:
                self._close(number)

    async def serve(
        self, bindings: Iterable[Binding], reservation: Reservation | None, *, all_there_are: bool = False
    ) -> None:
        """Listen for bindings that want it; for no others, when these are all that there are.

        A port that cannot be had is told to the log, and tried again when all are named.
        """
        wanted = _by_port(bindings)
        for number in [n for n, port in self._ports.items() if all_there_are and port.binding != wanted.get(n)]:
            self._close(number)
        for number in [n for n in wanted if n in self._ports]:
            if _rightful(wanted[number]) > _rightful(self._ports[number].binding):
                self._close(number)
            else:
                del wanted[number]
        opened, failures = await asyncio.to_thread(_listen, wanted, reservation)
        for number, listener in opened.items():
            self._ports[number] = Port(wanted[number], listener)
            self._attend(self._ports[number])
        if new := {n: why for n, why in failures.items() if self._told.get(n) != why}:
            number, why = next(iter(new.items()))
            log.warning("%d published ports are not relayed from [::1]: port %d: %s", len(new), number, why)
        self._told = failures if all_there_are else {**self._told, **failures}

    def _close(self, number: int) -> None:
        port = self._ports.pop(number)
        asyncio.get_running_loop().remove_reader(port.listener)
        port.listener.close()
        for connection in port.connections:
            connection.cancel()

    def _attend(self, port: Port) -> None:
        if port.listener.fileno() >= 0:  # closed while accepting paused
            asyncio.get_running_loop().add_reader(port.listener, self._accept, port)

    def _accept(self, port: Port) -> None:
        """Take the connections that wait, as long as there is room."""
        number = port.binding.host_port
        for _ in range(BACKLOG):
            try:
                client, _ = port.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory: the loop would come back at once, for ever
                log.warning("no connection to [::1]:%s is taken for %.0f s: %s", number, ACCEPT_PAUSE, error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(port.listener)
                loop.call_later(ACCEPT_PAUSE, self._attend, port)
                return
            if len(port.connections) < LIMIT:
                task = self._group.create_task(_relay(client, port.binding))
                port.connections.add(task)
                task.add_done_callback(port.connections.discard)
                continue
            _cut(client)
            if not port.full:
                log.warning("[::1]:%s has %d connections: further ones are reset", number, LIMIT)
            port.full = True


def is_relayed(binding: Binding) -> bool:
    """Say whether a binding is to be reached from [::1]: every IPv6 address is, also of a container without one."""
    host_ip = binding.mapping.host_ip
    everywhere = is_wildcard(host_ip) and (host_ip is None or host_ip.version == 6)  # noqa: PLR2004 - an IP version
    served = binding.state is State.ACTIVE and binding.mapping.protocol is Protocol.TCP
    return served and (everywhere or host_ip == IPV6_LOOPBACK)


def _rightful(binding: Binding) -> bool:
    """Say whether a binding has the port for IPv6; else it is relayed as long as nobody has."""
    return 6 in binding.families  # noqa: PLR2004 - an IP version


def _by_port(bindings: Iterable[Binding]) -> dict[int, Binding]:
    found: dict[int, Binding] = {}
    for binding in bindings:
        number = binding.host_port
        if number is not None and is_relayed(binding) and (number not in found or _rightful(binding)):
            found[number] = binding
    return found


def _listen(
    wanted: dict[int, Binding], reservation: Reservation | None
) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """Give the listening sockets of ports, and why there is none for others."""
    opened: dict[int, socket.socket] = {}
    failures: dict[int, str] = {}
    for number, binding in wanted.items():
        try:
            with reservation.shared(binding) if reservation else nullcontext():
                opened[number] = _listener(number)
        except OSError as error:
            who = "another program has it" if error.errno == errno.EADDRINUSE else str(error.strerror)
            failures[number] = who
    return opened, failures


def _listener(number: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # It stays set: accepted sockets inherit it, and what is left of them (TIME_WAIT) must not keep the next
        # watcher from the port. Others do not get in by it, as this one listens.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((str(IPV6_LOOPBACK), number))
        opened.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, facts.LOOPBACK_INTERFACE)  # by which we know it
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


async def _relay(client: socket.socket, binding: Binding) -> None:
    """Connect a client to the container, and pass on until both have ended."""
    ends, whole = [client], False
    try:
        client.setblocking(False)  # noqa: FBT003 - its only way
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        addresses = [address for address in (binding.ipv6, binding.ipv4) if address]
        ends.append(await _connected(addresses, binding.mapping.container_port))
        if not (whole := await _exchange(*ends)):
            await _delivered(ends)
    except OSError as error:
        log.debug("a connection to [::1]:%s came to nothing: %s", binding.host_port, error)
    finally:
        for end in ends:
            end.close() if whole else _cut(end)


async def _connected(addresses: Iterable[IPAddress], number: int) -> socket.socket:
    """Give a connection to the first address that takes it; OSError when none does."""
    failure = OSError(errno.EADDRNOTAVAIL, "the container has no address")
    for address in addresses:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET  # noqa: PLR2004 - an IP version
        with ExitStack() as unless_connected:
            opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            unless_connected.callback(opened.close)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                async with asyncio.timeout(CONNECT_PATIENCE):
                    await asyncio.get_running_loop().sock_connect(opened, (str(address), number))
            except OSError as error:  # TimeoutError among them
                failure = error
                continue
            unless_connected.pop_all()
            return opened
    raise failure


async def _exchange(client: socket.socket, server: socket.socket) -> bool:
    """Pass on in both directions; says whether both came to their regular end."""
    whole = False
    try:
        async with asyncio.TaskGroup() as group:
            directions = [group.create_task(_pump(*pair)) for pair in ((client, server), (server, client))]
        whole = all(direction.result() for direction in directions)
    except* OSError as cut:
        log.debug("a relayed connection was cut: %s", cut.exceptions[0])
    return whole


async def _pump(source: socket.socket, sink: socket.socket) -> bool:
    """Pass on until the source ends, and tell the sink; False when the sink takes no more.

    What a sink has said before it was cut off is still passed on, by the pump of the other direction. OSError when
    the source was cut off, and then nobody has a use for the other direction.
    """
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK):
        try:
            await loop.sock_sendall(sink, data)
        except OSError:
            return False
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


async def _delivered(ends: Iterable[socket.socket]) -> None:
    """Wait for what was sent to arrive: a reset drops the rest."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DELIVERY_PATIENCE
    while any(_unsent(end) for end in ends) and loop.time() < deadline:  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(0.01)


def _unsent(end: socket.socket) -> int:
    """Give the bytes that the other side has not acknowledged; 0 when there is none any more."""
    if end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == sockdiag.CLOSE:
        return 0
    return int(struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))[0])  # tcp(7): SIOCOUTQ


def _cut(end: socket.socket) -> None:
    """Close by a reset: nobody takes it for a regular end, and nothing of it stays in TIME_WAIT."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    end.close()
