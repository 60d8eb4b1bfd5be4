"""Bound sockets that keep published ports from other programs, for as long as this process lives.

A published port is served by the kernel's tables: without a socket another program could bind it, start without
an error, and never see a packet. The sockets here answer nobody. TCP is bound and does not listen, so a packet that
meets no mapping is refused. A bound UDP socket would swallow such a packet in silence; ours is bound to an
interface that does not exist, so that no packet finds it and the kernel answers port unreachable, while a `bind`
by anybody else still meets it. SCTP is not held: to make such a socket would load a kernel module that few
hosts want.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from ctrport.host import facts, sockdiag
from ctrport.model.bindings import Listener, State, is_wildcard, socket_text
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.model.bindings import Binding, Change, IPAddress

log = logging.getLogger(__name__)
SO_BINDTOIFINDEX = 62  # asm-generic/socket.h, Linux 5.1
IP_FREEBIND = 15  # linux/in.h; an address may come and go while it is published
IPV6_FREEBIND = 78  # linux/in6.h
WILDCARDS: dict[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}
KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
SPARE = 1000  # open files that are left for everything else that this process does
OPEN_FILES = 1 << 20  # fs.nr_open; the hard limit that systemd gives by default is half of that


class Place(NamedTuple):
    """What one socket holds."""

    protocol: Protocol
    port: int
    families: tuple[int, ...]  # 4, 6, or both in one socket
    host_ip: IPAddress | None  # None for every address


class Reservation:
    """The sockets of one process."""

    def __init__(self) -> None:
        self._held: dict[Place, int] = {}  # descriptors
        self._told: list[str] = []  # failures that the log has already
        self._most = _raise_limit() - SPARE

    def __len__(self) -> int:
        return len(self._held)

    def update(self, changes: Iterable[Change]) -> list[Listener]:
        """Let go what has ended and hold what has begun; gives who has ports that could not be held."""
        old: set[Place] = set()
        new: dict[Place, None] = {}
        for change in changes:
            old.update(places(change.old))
            new.update(dict.fromkeys(places(change.new)))
        for place in old - new.keys():
            if (descriptor := self._held.pop(place, None)) is not None:
                os.close(descriptor)
        return self._hold(new)

    def retry(self, bindings: Iterable[Binding]) -> None:
        """Hold what all bindings want and let go anything else, whatever a pass that failed has left.

        Whoever has by now what could not be held before may keep it.
        """
        wanted = {place: None for binding in bindings for place in places(binding)}
        for place in self._held.keys() - wanted.keys():
            os.close(self._held.pop(place))
        self._hold(wanted)

    @contextmanager
    def shared(self, binding: Binding) -> Iterator[None]:
        """Let another socket of ours have what is held for a binding; only for the block, and both reusing.

        Whoever else binds in that moment by SO_REUSEADDR is told at `listen`, when the option is off again.
        """
        held = [self._held[place] for place in places(binding) if place in self._held]
        _set_reusable(held, value=True)
        try:
            yield
        finally:
            _set_reusable(held, value=False)

    def close(self) -> None:
        """Let go everything."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _hold(self, wanted: Iterable[Place]) -> list[Listener]:
        holders: list[Listener] = []
        failures: list[str] = []
        for place in wanted:
            if place in self._held:
                continue
            try:
                self._held[place] = self._bound(place)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and (holder := _holder(place)):
                    holders.append(holder)
                elif error.errno != errno.EADDRINUSE:  # else a connection has it as its own end, and will end
                    failures.append(f"{socket_text(place.host_ip, place.port, place.protocol)}: {error.strerror}")
        if failures and failures != self._told:
            log.warning("%d published ports are not held against other programs: %s", len(failures), failures[0])
        self._told = failures or self._told
        return holders

    def _bound(self, place: Place) -> int:
        if len(self._held) >= self._most:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return _bound(place)


def places(binding: Binding | None) -> Iterator[Place]:
    """Give what is to be held for a binding: one socket, none unless it is active."""
    if binding is None or binding.state is not State.ACTIVE or binding.host_port is None:
        return
    protocol, host_ip = binding.mapping.protocol, binding.mapping.host_ip
    if protocol not in KINDS:
        return
    yield Place(protocol, binding.host_port, binding.families, None if is_wildcard(host_ip) else host_ip)


def _bound(place: Place) -> int:
    """Give the descriptor of a bound socket; OSError with EADDRINUSE if somebody has the port."""
    ipv6 = 6 in place.families  # noqa: PLR2004 - an IP version
    opened = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, KINDS[place.protocol])
    try:
        if ipv6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(place.families == (6,)))
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            opened.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        address = (str(place.host_ip or WILDCARDS[max(place.families)]), place.port)
        try:
            opened.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or place.protocol is not Protocol.TCP:
                raise
            # What is left of a server's connections (TIME_WAIT) does not count. The option is taken back, or it
            # would let others in as well.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        if place.protocol is Protocol.UDP:  # after bind, which for one IPv6 address wants to see the interface
            opened.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, facts.NO_INTERFACE)
        return opened.detach()
    finally:
        opened.close()


def _set_reusable(descriptors: Iterable[int], *, value: bool) -> None:
    for descriptor in descriptors:
        held = socket.socket(fileno=descriptor)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(value))
        finally:
            held.detach()


def _holder(place: Place) -> Listener | None:
    """Find who keeps us from a port; None if it is the local end of a connection, which is no conflict."""
    waiting = 1 << sockdiag.LISTEN | 1 << sockdiag.CLOSE | 1 << sockdiag.BOUND_INACTIVE
    for listener in facts.sockets(place.protocol, waiting, place.port):
        same = place.host_ip is None or listener.address.is_unspecified or listener.address == place.host_ip
        if same and not set(place.families).isdisjoint(listener.families):
            return facts.named([listener]).get(listener, listener)
    if facts.sockets(place.protocol, sockdiag.EVERY_STATE, place.port):
        return None
    address = place.host_ip or WILDCARDS[max(place.families)]
    return Listener(place.protocol, place.port, address, place.families, "a process that has bound it")


def _raise_limit() -> int:
    """Allow as many open files as we may, a socket for each published port; gives how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, OPEN_FILES)
    for limit in ((wanted, wanted), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        except (ValueError, OSError):  # more than we may
            continue
        log.debug("raised the limit of open files from %d to %d", soft, limit[0])
        return limit[0]
    return soft
