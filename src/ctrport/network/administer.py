"""Making, describing and removing networks on this host. Whoever makes or removes holds the writer's lock."""

from __future__ import annotations

import shutil
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ctrport.errors import ConflictError
from ctrport.network import define, leases, links, networks, proc

if TYPE_CHECKING:
    from pathlib import Path

    from ctrport.network.define import Wish
    from ctrport.network.networks import Network

SHOWN = 5  # holders of a network that an error names


def create(root: Path, wish: Wish) -> Network:
    """Make a network and its bridge; on failure nothing of it stays."""
    network = define.choose(
        wish,
        others=networks.load_all(root),
        here=proc.read(),
        interfaces={name for _, name in socket.if_nameindex()},
        ipv6=networks.has_ipv6(),
    )
    networks.save(root, network)
    with ExitStack() as undo:
        undo.callback(_take_back, root, network)
        links.ensure_bridge(network)
        undo.pop_all()
    return network


def remove(root: Path, name: str) -> None:
    """Remove a network and its bridge. ConflictError names the containers that are on it, running or not."""
    network = networks.load(root, name)
    holders = leases.of_network(root, name)
    if holders:
        shown = ", ".join(str(lease.container) for lease in holders[:SHOWN])
        more = f" and {len(holders) - SHOWN} more" if len(holders) > SHOWN else ""
        raise ConflictError(
            f"network {name} is in use by {shown}{more}",
            hint=f"ctrport rm -f {' '.join(lease.container.id for lease in holders[:SHOWN])}",
        )
    _take_back(root, network)


def describe(root: Path, network: Network) -> dict[str, Any]:
    """Give a network with its containers, as plain JSON."""
    return {
        **network.to_json(),
        "containers": [
            {
                "namespace": lease.container.namespace,
                "id": lease.container.id,
                "ipv4": str(lease.ipv4),
                "ipv6": str(network.ipv6_of(lease.ipv4)) if network.ipv6 else None,
            }
            for lease in leases.of_network(root, network.name)
        ],
    }


def _take_back(root: Path, network: Network) -> None:
    links.remove_link(network.bridge)
    where = networks.path_of(root, network.name)
    (where / "network.json").unlink(missing_ok=True)  # what is left without it is no network
    shutil.rmtree(where, ignore_errors=True)
