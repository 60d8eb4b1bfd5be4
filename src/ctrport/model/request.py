"""A request for a host port, as the ledger keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ctrport.model.bindings import IPV6_LOOPBACK, Binding, Incumbent, host_families, is_wildcard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.model.bindings import IPAddress
    from ctrport.model.ports import PortMapping
    from ctrport.model.workload import Key, Workload


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One mapping that one container asks for; `port` is the host port it has or is to have."""

    owner: Key
    asked_at: int
    mapping: PortMapping
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    port: int | None
    binding: Binding | None = None

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


def request_of(workload: Workload, mapping: PortMapping) -> Request:
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
    )


def groups(requests: list[Request]) -> Iterator[list[Request]]:
    """One container's automatic requests for one port in several protocols get the same number."""
    found: dict[object, list[Request]] = {}
    for request in requests:
        mapping = request.mapping
        name: object = id(request)
        if mapping.host_port_pool is None:
            name = (request.owner, mapping.host_ip, mapping.container_port)
        found.setdefault(name, []).append(request)
    yield from found.values()
