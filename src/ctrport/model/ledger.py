"""Who gets which host port.

Theory of operation. Every request for a host port stands in one *bucket*, named by protocol and port. Within a
bucket requests are served in the order of their containers' creation; one that overlaps an earlier winner waits.
Requests for a port of the host's choice (pools and automatic ones) are first given a port and then stand in
that port's bucket like any other. A change touches the buckets of the container that changed and no others, so
its cost does not grow with the number of containers.

The ledger knows no kernel and no clock: the facts of the host come in as `Host`, and `settle()` gives what
changed as pairs of bindings.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ctrport.model.bindings import Binding, Change, Host, Incumbent, State, is_wildcard, socket_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ctrport.model.bindings import IPAddress, Listener
    from ctrport.model.ports import PortMapping, Protocol
    from ctrport.model.workload import Key, Workload

ALL_ALLOCATED = "all ports are allocated"  # Docker's words for an exhausted pool
IPV6_LOOPBACK = IPv6Address("::1")


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    owner: Key
    created_at: int
    mapping: PortMapping
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    port: int | None
    binding: Binding | None = None

    @property
    def rank(self) -> tuple[int, Key]:
        return self.created_at, self.owner

    @property
    def floating(self) -> bool:
        return self.mapping.host_port is None

    @property
    def incumbent(self) -> Incumbent:
        host_ip = None if is_wildcard(self.mapping.host_ip) else self.mapping.host_ip
        return Incumbent(self.owner, self.mapping.protocol, host_ip, self.mapping.container_port)

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(f for f, address in ((4, self.ipv4), (6, self.ipv6)) if address is not None)

    def overlaps(self, address: IPAddress | None, families: Iterable[int]) -> bool:
        """Say whether both want one socket: a wildcard takes all addresses of its families."""
        mine = self.mapping.host_ip
        same_address = is_wildcard(mine) or is_wildcard(address) or mine == address
        return same_address and any(f in families for f in self.families)


class Ledger:
    """Host ports and their holders. `put` and `remove` say what changed, `settle` decides."""

    def __init__(self, host: Host | None = None, incumbents: Mapping[Incumbent, int] | None = None) -> None:
        self._requests: dict[Key, dict[object, _Request]] = {}
        self._buckets: dict[tuple[Protocol, int], list[_Request]] = {}
        self._dirty: dict[tuple[Protocol, int], None] = {}
        self._open: list[_Request] = []  # pools and automatic ones without a port
        self._changes: list[Change] = []
        self._incumbents = dict(incumbents or {})
        self._last_ports: dict[Key, dict[Incumbent, int]] = {}  # of floating requests, for a restarted task
        self.set_host(host or Host())

    def set_host(self, host: Host) -> None:
        """Take new facts of the host; every request is judged again at the next `settle`."""
        self._host = host
        self.set_listeners(host.listeners)
        self._lowest_automatic = host.automatic[0]  # no port below is free for everybody
        self._dirty.update(dict.fromkeys(self._buckets))

    def set_listeners(self, listeners: Iterable[Listener]) -> None:
        """Take the host's sockets as they are now; only requests that change are judged by them."""
        self._listeners: dict[tuple[Protocol, int], list[Listener]] = {}
        for listener in listeners:
            self._listeners.setdefault((listener.protocol, listener.port), []).append(listener)

    def put(self, workload: Workload) -> None:
        """Set what a container asks for; the same workload again changes nothing."""
        old = self._requests.get(workload.key, {})
        new: dict[object, _Request] = {}
        for mapping in workload.requests if workload.endpoint else ():
            request = _request(workload, mapping)
            identity: object = (mapping, request.ipv4, request.ipv6)
            new[identity] = old.get(identity) or request
        for identity, request in old.items():
            if identity not in new:
                self._leave(request)
        self._requests[workload.key] = new
        for identity, request in new.items():
            if request.created_at != workload.created_at:  # a reservation has become a container
                self._rank(request, workload.created_at)
            if identity not in old:
                if request.floating:
                    request.port = self._former_port(request)
                self._enter(request)

    def remove(self, key: Key) -> None:
        """Forget a container; its ports go to who waits for them."""
        for request in self._requests.pop(key, {}).values():
            self._leave(request)
        self._last_ports.pop(key, None)

    def owners(self) -> tuple[Key, ...]:
        """Give the containers that `put` has named and `remove` has not."""
        return tuple(self._requests)

    def bindings(self, key: Key) -> tuple[Binding, ...]:
        """Give a container's bindings in the order of its requests, as of the last `settle`."""
        return tuple(r.binding for r in self._requests.get(key, {}).values() if r.binding)

    def settle(self) -> list[Change]:
        """Decide every request that may have changed; gives the changes since the last call."""
        self._judge()
        self._open.sort(key=lambda r: (r.mapping.host_port_pool is None, r.rank))
        waiting, self._open = self._open, []
        for group in _groups(waiting):
            self._assign(group)
        self._judge()
        changes, self._changes = self._changes, []
        return changes

    def _former_port(self, request: _Request) -> int | None:
        last = self._last_ports.get(request.owner, {}).get(request.incumbent)
        port = self._incumbents.get(request.incumbent, last)
        low, high = request.mapping.host_port_pool or self._host.automatic
        return port if port is not None and low <= port <= high else None

    def _enter(self, request: _Request) -> None:
        if request.port is None:
            self._open.append(request)
            return
        name = (request.mapping.protocol, request.port)
        bisect.insort(self._buckets.setdefault(name, []), request, key=lambda r: r.rank)
        self._dirty[name] = None

    def _rank(self, request: _Request, created_at: int) -> None:
        request.created_at = created_at
        if request.port is not None:
            name = (request.mapping.protocol, request.port)
            self._buckets[name].sort(key=lambda r: r.rank)
            self._dirty[name] = None

    def _leave(self, request: _Request) -> None:
        if request.port is None:
            self._open.remove(request)
        else:
            self._vacate(request, request.port)
            if request.floating:
                self._last_ports.setdefault(request.owner, {})[request.incumbent] = request.port
        self._incumbents.pop(request.incumbent, None)
        if request.binding is not None:
            self._changes.append(Change(request.binding, None))

    def _vacate(self, request: _Request, port: int) -> None:
        name = (request.mapping.protocol, port)
        self._buckets[name].remove(request)
        if not self._buckets[name]:
            del self._buckets[name]
        self._dirty[name] = None
        if port >= self._host.automatic[0]:
            self._lowest_automatic = min(self._lowest_automatic, port)

    def _judge(self) -> None:
        """Serve each changed bucket in the order of creation."""
        while self._dirty:
            name = next(iter(self._dirty))
            del self._dirty[name]
            winners: list[_Request] = []
            for request in tuple(self._buckets.get(name, ())):
                if refusal := self._refusal(request):
                    self._report(request, State.REFUSED, refusal)
                elif holder := self._holder(request, name[1], winners):
                    if request.floating:
                        self._vacate(request, name[1])
                        request.port = None
                        self._open.append(request)
                    self._report(request, State.WAITING, holder)
                else:
                    winners.append(request)
                    self._report(request, State.ACTIVE)

    def _assign(self, group: list[_Request]) -> None:
        """Give the first port that is free for the whole group."""
        if refusal := self._refusal(group[0]):
            self._leave_open(group, State.REFUSED, refusal)
            return
        pool = group[0].mapping.host_port_pool
        low, high = pool or self._host.automatic
        start = low if pool else self._lowest_automatic  # what lies below may be free for other protocols, families
        for port in itertools.chain(range(start, high + 1), range(low, start)):
            if pool is None and port in self._host.reserved:
                continue
            if any(self._holder(r, port, self._bucket(r, port)) for r in group):
                continue
            for request in group:
                request.port = port
                self._enter(request)
            if pool is None and port == self._lowest_automatic and is_wildcard(group[0].mapping.host_ip):
                self._lowest_automatic = port + 1
            return
        self._leave_open(group, State.WAITING, ALL_ALLOCATED)

    def _leave_open(self, group: list[_Request], state: State, reason: str) -> None:
        self._open.extend(group)
        for request in group:
            self._report(request, state, reason)

    def _bucket(self, request: _Request, port: int) -> Iterable[_Request]:
        """Give who stands in a port's bucket, but for those that are refused and will never be served there."""
        bucket = self._buckets.get((request.mapping.protocol, port), ())
        return [r for r in bucket if r.binding is None or r.binding.state is not State.REFUSED]

    def _refusal(self, request: _Request) -> str:
        host_ip = request.mapping.host_ip
        if host_ip == IPV6_LOOPBACK:
            return "[::1] cannot be published: the kernel routes no packet from ::1 to a container"
        if host_ip is not None and not self._host.has(host_ip):
            return f"host IP {host_ip} is not an address of this host"
        if not request.families:
            family = f"IPv{host_ip.version}" if host_ip else "IP"
            return f"the container has no {family} address"
        return ""

    def _holder(self, request: _Request, port: int, earlier: Iterable[_Request]) -> str:
        """Who keeps this request from a port, in words; empty when nobody does."""
        protocol = request.mapping.protocol
        for other in earlier:
            if request.overlaps(other.mapping.host_ip, other.families):
                return f"{socket_text(other.mapping.host_ip, port, protocol)} is held by container {other.owner}"
        # A published port is not lost to a program that starts to listen on it later: packets do not reach it.
        served = request.port == port and request.binding and request.binding.state is State.ACTIVE
        if served or self._incumbents.get(request.incumbent) == port:
            return ""
        for listener in self._listeners.get((protocol, port), ()):
            if request.overlaps(listener.address, listener.families):
                where = socket_text(listener.address, port, protocol)
                return f"{where} is held by {listener.holder or 'a process that listens there'}"
        return ""

    def _report(self, request: _Request, state: State, reason: str = "") -> None:
        new = Binding(
            owner=request.owner,
            mapping=request.mapping,
            host_port=request.port,
            state=state,
            reason=reason,
            ipv4=request.ipv4,
            ipv6=request.ipv6,
        )
        if new != request.binding:
            self._changes.append(Change(request.binding, new))
            request.binding = new


def _request(workload: Workload, mapping: PortMapping) -> _Request:
    endpoint = workload.endpoint
    host_ip = mapping.host_ip
    return _Request(
        owner=workload.key,
        created_at=workload.created_at,
        mapping=mapping,
        ipv4=endpoint.ipv4 if endpoint and not isinstance(host_ip, IPv6Address) else None,
        ipv6=endpoint.ipv6 if endpoint and not isinstance(host_ip, IPv4Address) else None,
        port=mapping.host_port,
    )


def _groups(requests: list[_Request]) -> Iterator[list[_Request]]:
    """One container's automatic requests for one port in several protocols get the same number."""
    groups: dict[object, list[_Request]] = {}
    for request in requests:
        mapping = request.mapping
        name: object = id(request)
        if mapping.host_port_pool is None:
            name = (request.owner, mapping.host_ip, mapping.container_port)
        groups.setdefault(name, []).append(request)
    yield from groups.values()
