"""The scenarios of the golden files: containers and networks in, a table out."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.firewall import ruleset
from ctrport.firewall.ruleset import Links
from ctrport.model import ports
from ctrport.model.ledger import Ledger
from ctrport.model.workload import Endpoint, Key, Workload

if TYPE_CHECKING:
    from ctrport.firewall.table import Table

DIRECTORY = Path(__file__).parent
OURS = Links(bridges=frozenset({"ctrport0"}))


def container(name: str, specs: str, number: int, *, ipv6: bool = True, subnet: str = "10.208.0") -> Workload:
    """Give a container that publishes ports, with the address of that number."""
    mappings, errors = ports.parse_list(specs)
    assert not errors
    endpoint = Endpoint(
        ipv4=IPv4Address(f"{subnet}.{number}"), ipv6=IPv6Address(f"fd8c:54a9:7e10::{number}") if ipv6 else None
    )
    return Workload(key=Key("default", name), created_at=number, requests=mappings, endpoint=endpoint)


def table(*workloads: Workload, links: Links = OURS) -> Table:
    """Give the table for some containers, their ports given out by the ledger."""
    ledger = Ledger()
    for workload in workloads:
        ledger.put(workload)
    ledger.settle()
    return ruleset.build([b for key in ledger.owners() for b in ledger.bindings(key)], links)


SCENARIOS: dict[str, Table] = {
    # A network, and no container that publishes.
    "empty": table(),
    # ctrport run -d --name web -p 8080:80 nginx
    "wildcard": table(container("web", "8080:80", 2)),
    # -p 192.0.2.10:8080:80, and another container on 127.0.0.1
    "host-ip": table(container("web", "192.0.2.10:8080:80", 2), container("admin", "127.0.0.1:9000:9000", 3)),
    # -p 53:53/udp -p 53:53/tcp
    "udp-and-tcp": table(container("dns", "53:53/udp 53:53/tcp", 2)),
    # IPv6 only, on every address and on one; and a container without IPv6
    "ipv6": table(
        container("web", "[::]:8080:80 [2001:db8::1]:8443:443", 2),
        container("old", "8081:80", 3, ipv6=False),
    ),
    # Containers on two networks of ours
    "two-networks": table(
        container("web", "8080:80", 2, ipv6=False),
        container("db", "127.0.0.1:5432:5432", 3, ipv6=False, subnet="10.208.16"),
        links=Links(bridges=frozenset({"ctrport0", "ctrport1"})),
    ),
    # A network whose containers are kept apart, and one that nothing enters or leaves
    "isolated-and-internal": table(
        container("web", "8080:80", 2, ipv6=False),
        links=Links(
            bridges=frozenset({"cp-apart", "cp-inside"}),
            internal=frozenset({"cp-inside"}),
            isolated=frozenset({"cp-apart"}),
        ),
    ),
    # A container on the bridge of a CNI plugin: published, and not closed
    "cni": table(
        container("web", "8080:80", 5, ipv6=False, subnet="10.88.0"),
        links=Links(bridges=frozenset({"ctrport0"}), endpoints=frozenset({"cni0"})),
    ),
}
