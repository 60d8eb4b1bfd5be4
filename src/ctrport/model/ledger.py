"""Who gets which host port.

Theory of operation. Every request for a host port stands in one *bucket*, named by protocol and port. Within a
bucket requests are served in the order in which they were asked for, which is their containers' creation unless
`publish` came later; one that overlaps an earlier winner waits. Requests for a port of the host's choice (pools and
automatic ones) are first given a port and then stand in that port's bucket like any other. A change touches the
buckets of the container that changed and no others: its cost does not grow with the number of containers.

The ledger knows no kernel and no clock: the facts of the host come in as `Host`, and `settle()` gives what
changed as pairs of bindings. What the operator's policy does not allow is refused, and a port of the host's choice
is one that it does.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from typing import TYPE_CHECKING

from ctrport.model.bindings import Change, Host, State, is_wildcard, socket_text
from ctrport.model.former import FormerPorts
from ctrport.model.grants import grant_of, within
from ctrport.model.policy import Policy
from ctrport.model.request import groups, request_of
from ctrport.model.translated import Translated
from ctrport.model.vacancies import Vacancies
from ctrport.model.workload import title

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ctrport.model.bindings import Binding, Incumbent, Listener
    from ctrport.model.ports import Protocol
    from ctrport.model.request import Request
    from ctrport.model.workload import Key, Workload

ALL_ALLOCATED = "all ports are allocated"  # Docker's words for an exhausted pool


class Ledger:
    """Host ports and their holders. `put` and `remove` say what changed, `settle` decides."""

    def __init__(
        self,
        host: Host | None = None,
        incumbents: Mapping[Incumbent, Iterable[int]] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._policy = policy or Policy()
        self.newest = 0  # of the times at which anything was ever asked for
        self._workloads: dict[Key, Workload] = {}
        self._requests: dict[Key, dict[object, Request]] = {}
        self._buckets: dict[tuple[Protocol, int], list[Request]] = {}
        self._dirty: dict[tuple[Protocol, int], None] = {}
        self._open: list[Request] = []  # pools and automatic ones without a port
        self._changes: list[Change] = []
        self._listeners: dict[tuple[Protocol, int], list[Listener]] = {}
        self._taken: dict[tuple[Protocol, int], list[Listener]] = {}  # found by trying, and not among those
        self._translated = Translated()
        self._former = FormerPorts(incumbents or {})
        self.host = host or Host()
        self.set_host(self.host)

    def set_host(self, host: Host) -> None:
        """Take new facts of the host; requests are judged again at the next `settle` if it has changed for them."""
        former, self.host = self.host, host
        self.set_listeners(host.listeners)
        self._lowest_automatic = host.automatic[0]  # no port below is free for everybody
        if not host.is_like(former):
            self._dirty.update(dict.fromkeys(self._buckets))

    def set_policy(self, policy: Policy) -> None:
        """Take other rules; every request that they change something for is judged again at the next `settle`."""
        self._policy = policy
        workloads, self._workloads = self._workloads, {}
        for workload in workloads.values():
            self.put(workload)

    def set_listeners(self, listeners: Iterable[Listener]) -> None:
        """Take who has ports now, the most telling first; who waits for one that is gone is judged again."""
        former = {name: {*there, *self._taken.get(name, ())} for name, there in self._listeners.items()}
        former |= {name: set(taken) for name, taken in self._taken.items() if name not in former}
        self._taken, self._listeners = {}, {}
        for listener in listeners:
            self._listeners.setdefault((listener.protocol, listener.port), []).append(listener)
        for name in former.keys() & self._buckets.keys():
            if not former[name].issubset(self._listeners.get(name, ())):
                self._dirty[name] = None

    def take(self, listener: Listener) -> None:
        """Take the kernel's word, got by trying, that somebody has a port which was just given out."""
        name = (listener.protocol, listener.port)
        self._taken.setdefault(name, []).append(listener)
        self._dirty[name] = None

    def contested(self, listeners: Iterable[Listener]) -> list[Listener]:
        """Give those that keep a request from its port, or will at the next `settle`."""
        return [
            listener
            for listener in listeners
            for request in self._buckets.get((listener.protocol, listener.port), ())
            if not (request.binding and request.binding.state is State.ACTIVE)
            and request.may_have(listener.port)
            and request.overlaps(listener.address, listener.families)
        ]

    def overlaps(self) -> list[tuple[Binding, Listener]]:
        """Give the mappings that are served although somebody else has their port too."""
        return [
            (request.binding, listener)
            for name, listeners in self._listeners.items()
            for request in self._buckets.get(name, ())
            if request.binding and request.binding.state is State.ACTIVE
            for listener in listeners
            if request.overlaps(listener.address, listener.families)
        ]

    def put(self, workload: Workload) -> None:
        """Set what a container asks for; the same workload again changes nothing."""
        if self._workloads.get(workload.key) == workload:
            return
        old = self._requests.get(workload.key, {})
        new: dict[object, Request] = {}
        grant = grant_of(self._policy, workload)
        for mapping in workload.requests if workload.endpoint else ():
            request = request_of(workload, mapping, grant)
            identity: object = (mapping, request.ipv4, request.ipv6)
            new[identity] = old.get(identity) or request
        for identity, request in old.items():
            if identity not in new:
                self._leave(request)
        self._requests[workload.key], self._workloads[workload.key] = new, workload
        names = self._translated.put(workload.key, workload.host_ports if workload.endpoint else ())
        self._dirty.update(dict.fromkeys(names))
        exact = {r.port for r in new.values() if not r.floating and r.port is not None}
        for identity, request in new.items():
            asked_at = workload.rank_of(request.mapping)
            self.newest = max(self.newest, asked_at)
            if request.asked_at != asked_at:  # a reservation has become a container
                self._rank(request, asked_at)
            if request.grant != grant:
                request.regrant(grant)
                self._doubt(request)
            if identity not in old:
                if request.floating:
                    pool = request.mapping.host_port_pool or self.host.automatic
                    request.port = self._former.of(request, pool, exact)
                self._enter(request)

    def remove(self, key: Key) -> None:
        """Forget a container; its ports go to who waits for them."""
        self._workloads.pop(key, None)
        for request in self._requests.pop(key, {}).values():
            self._leave(request)
        self._dirty.update(dict.fromkeys(self._translated.put(key, ())))
        self._former.forget(key)

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
        vacancies: defaultdict[object, Vacancies] = defaultdict(Vacancies)  # nothing is given back meanwhile
        for group in groups([request for request in waiting if not self._refused(request)]):
            alike = frozenset((r.mapping.protocol, r.mapping.host_ip, r.families, r.spans) for r in group)
            self._assign(group, vacancies[group[0].mapping.host_port_pool is None, alike])
        self._judge()
        changes, self._changes = self._changes, []
        return changes

    def give_back(self, changes: Iterable[Change]) -> None:
        """Take back what `settle` gave and nobody could act on: the next `settle` begins with it."""
        self._changes = [*changes, *self._changes]

    def _enter(self, request: Request) -> None:
        if request.port is None:
            self._open.append(request)
            return
        name = (request.mapping.protocol, request.port)
        bisect.insort(self._buckets.setdefault(name, []), request, key=lambda r: r.rank)
        self._dirty[name] = None

    def _rank(self, request: Request, asked_at: int) -> None:
        request.asked_at = asked_at
        if request.port is not None:
            self._buckets[request.mapping.protocol, request.port].sort(key=lambda r: r.rank)
        self._doubt(request)

    def _doubt(self, request: Request) -> None:
        """Have a request judged again; those without a port always are."""
        if request.port is not None:
            self._dirty[request.mapping.protocol, request.port] = None

    def _leave(self, request: Request) -> None:
        if request.port is None:
            self._open.remove(request)
        else:
            self._vacate(request, request.port)
        self._former.leave(request)
        if request.binding is not None:
            self._changes.append(Change(request.binding, None))

    def _vacate(self, request: Request, port: int) -> None:
        name = (request.mapping.protocol, port)
        self._buckets[name].remove(request)
        if not self._buckets[name]:
            del self._buckets[name]
        self._dirty[name] = None
        if port >= self.host.automatic[0]:
            self._lowest_automatic = min(self._lowest_automatic, port)

    def _judge(self) -> None:
        """Serve each changed bucket in the order of creation."""
        while self._dirty:
            name = next(iter(self._dirty))
            del self._dirty[name]
            winners: list[Request] = []
            for request in tuple(self._buckets.get(name, ())):
                if refusal := request.refusal(self.host):
                    self._report(request, State.REFUSED, refusal)
                elif not request.may_have(name[1]):
                    self._reopen(request, name[1])
                elif holder := self._holder(request, name[1], winners):
                    if request.floating:
                        self._reopen(request, name[1])
                    self._report(request, State.WAITING, holder)
                else:
                    winners.append(request)
                    self._report(request, State.ACTIVE)

    def _reopen(self, request: Request, port: int) -> None:
        """Take a port of the host's choice back, to choose another."""
        self._vacate(request, port)
        request.port = None
        self._open.append(request)

    def _refused(self, request: Request) -> bool:
        """Leave a request without a port open if it can have none."""
        if refusal := request.refusal(self.host):
            self._open.append(request)
            self._report(request, State.REFUSED, refusal)
        return bool(refusal)

    def _assign(self, group: list[Request], vacancies: Vacancies) -> None:
        """Give the first port that is free for the whole group, and allowed: that is the same for all of it."""
        pool, spans = group[0].mapping.host_port_pool, group[0].spans
        low, high = pool or self.host.automatic
        start = low if pool else self._lowest_automatic  # what lies below may be free for other protocols, families
        allowed = [*within(spans, start, high), *within(spans, low, start - 1)]
        port = vacancies.find(allowed, lambda port: self._is_free(group, port))
        for request in group:
            request.port = port
            self._enter(request)
            if port is None:
                self._report(request, State.WAITING, ALL_ALLOCATED)
        if pool is None and port == self._lowest_automatic and is_wildcard(group[0].mapping.host_ip):
            self._lowest_automatic = port + 1

    def _is_free(self, group: list[Request], port: int) -> bool:
        if group[0].mapping.host_port_pool is None and port in self.host.reserved:
            return False
        return not any(self._holder(r, port, self._bucket(r, port)) for r in group)

    def _bucket(self, request: Request, port: int) -> Iterable[Request]:
        """Give who stands in a port's bucket, but for those that are refused and will never be served there."""
        bucket = self._buckets.get((request.mapping.protocol, port), ())
        return [r for r in bucket if r.binding is None or r.binding.state is not State.REFUSED]

    def _holder(self, request: Request, port: int, earlier: Iterable[Request]) -> str:
        """Who keeps this request from a port, in words; empty when nobody does."""
        protocol = request.mapping.protocol
        for other in earlier:
            if request.overlaps(other.mapping.host_ip, other.families):
                where = socket_text(other.mapping.host_ip, port, protocol)
                return f"{where} is held by {title(other.owner, other.pod)}"
        # Of two that translate a port the kernel heeds one, by an order that nobody promises: never be the second.
        if reason := request.kept_by(self._translated.at(protocol, port)):
            return reason
        # A published port is not lost to a program that starts to listen on it later: packets do not reach it.
        if self._former.serves(request, port):
            return ""
        served = request.port == port and request.binding and request.binding.state is State.ACTIVE
        listeners: list[Listener] = [] if served else self._listeners.get((protocol, port), [])
        return request.kept_by([*self._taken.get((protocol, port), []), *listeners])

    def _report(self, request: Request, state: State, reason: str = "") -> None:
        if change := request.report(state, reason):
            self._changes.append(change)
