"""Our networks beside the host's other interfaces: subnets that others have too, and bridges that are gone."""

from __future__ import annotations

import shlex
import socket
from typing import TYPE_CHECKING

from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.errors import HostError
from ctrport.network import networks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    from ctrport.doctor.survey import Survey
    from ctrport.network.networks import Network
    from ctrport.network.proc import Route


def check(survey: Survey) -> Iterator[Finding]:
    """Say which networks are in somebody's way."""
    there = {name for _, name in socket.if_nameindex()}
    for network in survey.networks:
        if network.name in survey.used and network.bridge not in there:
            yield Finding(
                code=Code.BRIDGE_MISSING,
                severity=Severity.SERIOUS,
                what=f"network {network.name} has containers, and its bridge {network.bridge} is gone",
                fix=("ctrport sync",),
            )
        for subnet in (network.ipv4, network.ipv6):
            for route in survey.routes.routes:
                if subnet is not None and route.interface != network.bridge and _collide(subnet, route):
                    yield _collision(survey, network, subnet, route)


def _collide(subnet: IPv4Network | IPv6Network, route: Route) -> bool:
    # A default route collides with nothing.
    return (
        subnet.version == route.network.version and bool(route.network.prefixlen) and subnet.overlaps(route.network)
    )


def _collision(survey: Survey, network: Network, subnet: IPv4Network | IPv6Network, route: Route) -> Finding:
    broader = route.network.prefixlen < subnet.prefixlen  # then ours wins, and a part of theirs is out of reach
    consequence = "hosts there cannot be reached from here" if broader else "containers there cannot be reached"
    try:
        taken = [*(r.network for r in survey.routes.routes), *(n.ipv4 for n in survey.networks)]
        free = ["--subnet", str(networks.choose_subnet(taken))]
    except HostError:
        free = []
    return Finding(
        code=Code.SUBNET_COLLISION,
        severity=Severity.WARNING if broader else Severity.SERIOUS,
        what=f"network {network.name} ({subnet}) overlaps the route {route.network} of {route.interface}",
        detail=f"{consequence}; a network is made anew when no container is on it: ctrport network inspect tells",
        fix=(
            shlex.join(["ctrport", "network", "rm", network.name]),
            shlex.join(["ctrport", "network", "create", network.name, *free]),
        ),
    )
