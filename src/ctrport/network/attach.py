"""Putting a container on a network and taking it off again, whole or not at all.

A lease names everything that was made for a container, and is written first and removed last: whatever a crash
leaves behind can be found by it. Whoever calls this holds the writer's lock.
"""

from __future__ import annotations

import logging
import secrets
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctrport.errors import CtrportError
from ctrport.firewall.ruleset import Links
from ctrport.host import needs
from ctrport.model.workload import Endpoint
from ctrport.network import cni_attach, files, leases, links, netns, networks, proc

if TYPE_CHECKING:
    from collections.abc import Collection
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from ctrport.config import Settings
    from ctrport.model.workload import Key
    from ctrport.network.networks import Network

CNI = "cni"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What a container has on its network."""

    netns: Path
    bridge: str | None  # the host's interface towards it: a bridge of ours, or what a CNI plugin made
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    dns: tuple[str, ...] = ()  # servers that a CNI network names

    @property
    def endpoint(self) -> Endpoint:
        """Where the container's ports will be reached."""
        return Endpoint(ipv4=self.ipv4, ipv6=self.ipv6, interface=self.bridge)


def new_namespace(container: Key) -> Path:
    """Give the path of a namespace that is still to be made: no two containers ever have the same."""
    return netns.DIRECTORY / f"ctrport-{container.id[:60]}-{secrets.token_hex(4)}"


def attach(
    settings: Settings, container: Key, name: str, wanted: IPv4Address | None = None, where: Path | None = None
) -> Attachment:
    """Lease an address and make the namespace `where` and the veth pair; on failure nothing of it stays."""
    root = settings.root
    namespace = (where or new_namespace(container)).name
    if is_cni(name):
        return _attach_by_cni(settings, container, name, namespace)
    network = networks.load_or_create_default(root) if name == networks.DEFAULT else networks.load(root, name)
    files.make_directory(root, container)  # by it, detach knows a container of ours
    with ExitStack() as undo:
        lease = leases.take(root, network, container, netns=namespace, containerd=settings.address, wanted=wanted)
        undo.callback(leases.drop, root, lease)
        undo.callback(links.remove_container, namespace)
        connect(settings.state, network, lease)
        undo.pop_all()
    return Attachment(
        netns=netns.DIRECTORY / namespace,
        bridge=network.bridge,
        ipv4=lease.ipv4,
        ipv6=network.ipv6_of(lease.ipv4),
    )


def is_cni(name: str) -> bool:
    """Whether a network's name means one of the host's CNI configuration: `cni`, `cni:NAME`."""
    return name.partition(":")[0] == CNI


def _attach_by_cni(settings: Settings, container: Key, name: str, namespace: str) -> Attachment:
    found = cni_attach.attach(settings, container, name.partition(":")[2] or None, namespace)
    routes = proc.read()
    return Attachment(
        netns=netns.DIRECTORY / namespace,
        bridge=next((routes.interface_towards(a) for a in (found.ipv4, found.ipv6) if a), None),
        ipv4=found.ipv4,
        ipv6=found.ipv6,
        dns=cni_attach.nameservers(settings.root, container),
    )


def connect(state: Path, network: Network, lease: leases.Lease) -> None:
    """Make what a lease stands for; what is there already stays as it is."""
    links.ensure_bridge(network)
    # What cannot be set is told by the pass that follows, and stops no container from running.
    needs.ensure(state, Links(bridges=frozenset({network.bridge})), ipv6=network.ipv6 is not None)
    links.ensure_container(network, lease.netns, lease.ipv4)


def detach(root: Path, container: Key) -> None:
    """Take back all that a container had: veth pair, namespace, address, files. Twice is the same as once.

    A container that never was on a network of ours has no directory, and costs no look through the leases.
    """
    cni_attach.detach(root, container)
    if files.directory(root, container).exists():
        lease = leases.of_container(root, container)
        if lease is not None:
            _take_back(root, lease)
        files.remove(files.directory(root, container))


def repair(settings: Settings, known: Collection[Key], kept: Collection[Key]) -> list[Key]:
    """Make what is missing of the networks of known containers; remove what no container has any more.

    Gives the containers that were connected again: what was read of them before is out of date. `known` are the
    containers that containerd has, `kept` those about to be created. Leases of another containerd are left alone.
    """
    connected = cni_attach.repair(settings, known, kept)
    interfaces = {name for _, name in socket.if_nameindex()}  # once: a new bridge has to be joined by all
    for network in networks.load_all(settings.root):
        if network.bridge not in interfaces:
            log.info("making the bridge %s of network %s again", network.bridge, network.name)
            links.ensure_bridge(network)
    for lease in list(leases.every(settings.root)):
        if lease.containerd != settings.address:
            continue
        try:
            if lease.container in known or lease.container in kept:
                connected += [lease.container] * _connect_again(settings, lease, interfaces)
            else:
                log.info("removing what is left of %s: %s, namespace %s", lease.container, lease.ipv4, lease.netns)
                _take_back(settings.root, lease)
                files.remove(files.directory(settings.root, lease.container))
        except (CtrportError, OSError) as error:  # one network's trouble must not be every container's
            log.error("network of %s: %s", lease.container, error)  # noqa: TRY400 - told in full
    return connected


def _connect_again(settings: Settings, lease: leases.Lease, interfaces: Collection[str]) -> bool:
    """Make what is missing of a container's network; says whether anything was."""
    network = networks.load(settings.root, lease.network)
    there = network.bridge in interfaces and links.host_interface(lease.netns) in interfaces
    if there and netns.is_mounted(netns.DIRECTORY / lease.netns):
        if network.isolate:  # somebody may have changed bridge-nf-call-iptables, which decides how
            links.isolate([lease.netns])
        return False
    log.info("connecting %s to network %s again: %s", lease.container, network.name, lease.ipv4)
    connect(settings.state, network, lease)
    return True


def _take_back(root: Path, lease: leases.Lease) -> None:
    links.remove_container(lease.netns)
    leases.drop(root, lease)
