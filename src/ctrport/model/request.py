"""A request for a host port, as the ledger keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ctrport.model.bindings import IPV6_LOOPBACK, Binding, Change, Incumbent, host_families, is_wildcard
from ctrport.model.grants import EVERYTHING
from ctrport.model.policy import Span
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.model.bindings import Host, IPAddress, Listener, State
    from ctrport.model.grants import Grant
    from ctrport.model.ports import PortMapping
    from ctrport.model.workload import Key, Pod, Workload


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One mapping that one container asks for; `port` is the host port it has or is to have."""

    owner: Key
    asked_at: int
    mapping: PortMapping
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    port: int | None
    grant: Grant = EVERYTHING
    spans: tuple[Span, ...] = ()  # of host ports that the grant allows for this mapping
    pod: Pod | None = None
    binding: Binding | None = None

    def __post_init__(self) -> None:
        self.regrant(self.grant)

    def regrant(self, grant: Grant) -> None:
        """Take what the policy now allows the container."""
        self.grant, self.spans = grant, grant.spans(self.mapping, self.families)

    def may_have(self, port: int) -> bool:
        return any(first <= port <= last for first, last in self.spans)

    def refusal(self, host: Host) -> str:
        """Say why this host gives no port for it, whoever else asks; empty when it may have one."""
        host_ip = self.mapping.host_ip
        relayed = host.relays and self.mapping.protocol is Protocol.TCP
        if host_ip == IPV6_LOOPBACK and not relayed:
            return (
                "[::1] cannot be published: the kernel routes no packet from ::1 to a container; "
                "a watcher relays tcp where relay_ipv6_loopback is true"
            )
        if host_ip is not None and not host.has(host_ip):
            return f"host IP {host_ip} is not an address of this host"
        if not self.families:
            family = f"IPv{host_ip.version}" if host_ip else "IP"
            return f"the container has no {family} address"
        return self.grant.refusal(self.mapping, self.families, Span(*host.automatic))

    @property
    def rank(self) -> tuple[int, Key]:
        return self.asked_at, self.owner

    @property
    def floating(self) -> bool:
        return self.mapping.host_port is None

    @property
    def incumbent(self) -> Incumbent:
        host_ip = None if is_wildcard(self.mapping.host_ip) else self.mapping.host_ip
        return Incumbent(self.owner, self.mapping.protocol, host_ip, self.mapping.container_port)

    @property
    def families(self) -> tuple[int, ...]:
        return host_families(self.mapping.host_ip, self.ipv4, self.ipv6)

    def overlaps(self, address: IPAddress | None, families: Iterable[int]) -> bool:
        """Say whether both want one socket: a wildcard takes all addresses of its families."""
        mine = self.mapping.host_ip
        same_address = is_wildcard(mine) or is_wildcard(address) or mine == address
        return same_address and any(f in families for f in self.families)

    def report(self, state: State, reason: str = "") -> Change | None:
        """Take what has been decided; gives the change, None when it was so before."""
        new = Binding(
            owner=self.owner,
            mapping=self.mapping,
            host_port=self.port,
            state=state,
            reason=reason,
            ipv4=self.ipv4,
            ipv6=self.ipv6,
            pod=self.pod,
        )
        if new == self.binding:
            return None
        change, self.binding = Change(self.binding, new), new
        return change

    def kept_by(self, listeners: Iterable[Listener]) -> str:
        """Say who of these has what this request wants; empty when nobody does."""
        return next((each.reason() for each in listeners if self.overlaps(each.address, each.families)), "")


def request_of(workload: Workload, mapping: PortMapping, grant: Grant) -> Request:
    """Give the request that a workload makes by a mapping, in the families that the two have in common.

    From [::1] both of the container's addresses can be reached.
    """
    endpoint = workload.endpoint
    host_ip = mapping.host_ip
    by_ipv4 = host_ip == IPV6_LOOPBACK or not isinstance(host_ip, IPv6Address)
    return Request(
        owner=workload.key,
        asked_at=workload.rank_of(mapping),
        mapping=mapping,
        ipv4=endpoint.ipv4 if endpoint and by_ipv4 else None,
        ipv6=endpoint.ipv6 if endpoint and not isinstance(host_ip, IPv4Address) else None,
        port=mapping.host_port,
        grant=grant,
        pod=workload.pod,
    )


def groups(requests: list[Request]) -> Iterator[list[Request]]:
    """One container's automatic requests for one port in several protocols get the same number, if they may."""
    found: dict[object, list[Request]] = {}
    for request in requests:
        mapping = request.mapping
        name: object = id(request)
        if mapping.host_port_pool is None:
            name = (request.owner, mapping.host_ip, mapping.container_port, request.spans)
        found.setdefault(name, []).append(request)
    yield from found.values()
