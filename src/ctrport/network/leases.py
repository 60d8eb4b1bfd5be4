"""Who has which address: one file a lease, named by the IPv4 address.

A lease outlives a crash of whoever took it, and its file comes into being whole or not at all, so that none
can be taken twice. It names its container and everything made for it, so that what a crash leaves behind can be
found and taken away. Whoever changes leases holds the writer's lock.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from ctrport.errors import ConflictError, InputError
from ctrport.model.workload import Key
from ctrport.network.networks import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ctrport.network.networks import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """An address and what was made for its container."""

    network: str
    ipv4: IPv4Address
    container: Key
    netns: str  # name under /run/netns
    containerd: str  # address of the containerd that knows the container


def take(
    root: Path,
    network: Network,
    container: Key,
    *,
    netns: str,
    containerd: str,
    wanted: IPv4Address | None = None,
) -> Lease:
    """Lease the address wanted, else the next free one after the last given: a freed address rests long.

    InputError for an address that the network does not have, ConflictError when it or the subnet is taken.
    """
    if wanted is not None:
        lease = Lease(network=network.name, ipv4=wanted, container=container, netns=netns, containerd=containerd)
        return _take_exactly(root, network, lease)
    directory = path_of(root, network.name) / "leases"
    directory.mkdir(parents=True, exist_ok=True)
    first, size = int(network.ipv4.network_address), network.ipv4.num_addresses
    taken = {entry.name for entry in directory.iterdir()}
    last_file = directory.parent / "last"
    try:
        last = int(IPv4Address(last_file.read_text("ascii").strip())) - first
    except (FileNotFoundError, ValueError):
        last = 1
    unusable = (0, int(network.gateway4) - first, size - 1)
    for step in range(1, size + 1):  # the last one given comes last
        offset = (last + step) % size
        address = IPv4Address(first + offset)
        if offset in unusable or str(address) in taken:
            continue
        lease = Lease(network=network.name, ipv4=address, container=container, netns=netns, containerd=containerd)
        last_file.write_text(f"{address}\n", "ascii")  # first: after the lease nothing may fail
        try:
            put(root, lease)
        except FileExistsError:  # taken since the directory was read
            continue
        return lease
    raise ConflictError(
        f"network {network.name}: all {size - 3} addresses of {network.ipv4} are leased",
        hint="ctrport ps -a; ctrport rm what is not needed",
    )


def _take_exactly(root: Path, network: Network, lease: Lease) -> Lease:
    unusable = (network.ipv4.network_address, network.gateway4, network.ipv4.broadcast_address)
    if lease.ipv4 not in network.ipv4 or lease.ipv4 in unusable:
        raise InputError(f"{lease.ipv4} is not a container address of network {network.name} ({network.ipv4})")
    try:
        put(root, lease)
    except FileExistsError:
        holder = next((str(x.container) for x in every(root) if x.ipv4 == lease.ipv4), "another container")
        raise ConflictError(f"address {lease.ipv4} is held by {holder}") from None
    return lease


def put(root: Path, lease: Lease) -> None:
    """Write a lease. FileExistsError when somebody has that address."""
    path = path_of(root, lease.network) / "leases" / str(lease.ipv4)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = {**asdict(lease), "ipv4": str(lease.ipv4), "container": list(lease.container)}
    draft = path.parent.parent / f".lease.{secrets.token_hex(8)}"
    draft.write_text(json.dumps(raw) + "\n", "utf-8")
    try:
        os.link(draft, path)  # whole or not at all, and never over somebody else's
    finally:
        draft.unlink()


def drop(root: Path, lease: Lease) -> None:
    """Give an address back; twice is the same as once."""
    (path_of(root, lease.network) / "leases" / str(lease.ipv4)).unlink(missing_ok=True)


def every(root: Path) -> Iterator[Lease]:
    """Read all leases of all networks; one that a power failure has emptied is no lease and is removed."""
    for path in sorted(root.glob("networks/*/leases/*")):
        try:
            raw = json.loads(path.read_text("utf-8"))
            lease = Lease(
                network=raw["network"],
                ipv4=IPv4Address(raw["ipv4"]),
                container=Key(*raw["container"]),
                netns=raw["netns"],
                containerd=raw["containerd"],
            )
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError) as error:
            log.warning("removing the lease %s, which cannot be read: %s", path, error)
            path.unlink(missing_ok=True)
            continue
        yield lease


def of_network(root: Path, name: str) -> list[Lease]:
    """Give the leases of one network, by address."""
    return sorted((lease for lease in every(root) if lease.network == name), key=lambda lease: lease.ipv4)


def of_container(root: Path, container: Key) -> Lease | None:
    """Give a container's lease."""
    return next((lease for lease in every(root) if lease.container == container), None)
