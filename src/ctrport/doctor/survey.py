"""What doctor knows of this host: looked at once, before any judgement; what cannot be seen is kept as such.

Each source may be missing by itself: without containerd the watcher's last pass is judged, and without both the
mappings that the kernel serves. Changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ctrport import observe
from ctrport.containerd.client import Client
from ctrport.doctor import watcher
from ctrport.errors import ContainerdError, CtrportError, HostError
from ctrport.firewall import ruleset
from ctrport.firewall.nft import LibNft
from ctrport.firewall.ruleset import Links
from ctrport.host import facts
from ctrport.model.bindings import Binding, Host, State
from ctrport.model.ports import PortMapping, Protocol
from ctrport.model.workload import Key
from ctrport.network import networks, proc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.config import Settings
    from ctrport.doctor.watcher import Watcher
    from ctrport.firewall.table import Elements, Listing
    from ctrport.network.networks import Network
    from ctrport.observe import Look

CAP_NET_ADMIN = 1 << 12  # include/uapi/linux/capability.h
SECOND_LOOK = 0.5  # seconds that a pass at work has to bring the kernel to what it should be


class Blind(NamedTuple):
    """Something that could not be looked at."""

    what: str
    error: CtrportError


@dataclass(slots=True, kw_only=True)
class Survey:
    """What was seen."""

    settings: Settings
    watcher: Watcher
    host: Host = field(default_factory=Host)
    routes: proc.NetworkNamespace = field(default_factory=lambda: proc.NetworkNamespace((), ()))
    networks: tuple[Network, ...] = ()
    used: frozenset[str] = frozenset()  # those that containers are on, running or not, by name
    nft: LibNft | None = None  # None: not to be used here
    nft_error: HostError | None = None
    listing: Listing | None = None  # our table as the kernel has it
    look: Look | None = None  # None: containerd could not be asked
    containerd_error: ContainerdError | None = None
    bindings: tuple[Binding, ...] = ()
    problems: dict[Key, tuple[str, ...]] = field(default_factory=dict)  # specs that could not be read
    blind: list[Blind] = field(default_factory=list)
    privileged: bool = True

    @property
    def tracer(self) -> LibNft | None:
        """The nftables to trace packets with."""
        return self.nft if self.privileged and self.nft_error is None else None

    @property
    def active(self) -> list[Binding]:
        """Mappings that are to be served."""
        return [b for b in self.bindings if b.state is State.ACTIVE]

    @property
    def links(self) -> Links:
        """The bridges of our networks, and the interfaces towards published containers."""
        addresses = [a for b in self.active for a in (b.ipv4, b.ipv6) if a is not None]
        towards = {self.routes.interface_towards(address) for address in addresses}
        return Links(
            bridges=frozenset(n.bridge for n in self.networks),
            endpoints=frozenset(name for name in towards if name is not None and ruleset.can_name(name)),
        )


class _NoNft:
    """In the place of an nftables that cannot be used: no table, and nothing to be written."""

    def apply(self, script: str) -> None:
        raise AssertionError(script)

    def listing(self, *, elements: bool = True) -> Listing | None:  # noqa: ARG002 - as LibNft has it
        return None


async def survey(settings: Settings) -> Survey:
    """Look at everything once."""
    found = Survey(settings=settings, watcher=await watcher.ask(settings), privileged=_privileged())
    if found.watcher.state is watcher.State.HIDDEN:
        found.blind.append(Blind("the watcher", HostError(found.watcher.trouble)))
    await asyncio.to_thread(_see_host, found)
    await _see_containers(found)
    _conclude(found)
    return found


def _privileged() -> bool:
    """Say whether this is root with CAP_NET_ADMIN, which root in a container need not have (capabilities(7))."""
    found = re.search(r"^CapEff:\t(\w+)$", Path("/proc/thread-self/status").read_text("utf-8"), re.MULTILINE)
    return os.geteuid() == 0 and found is not None and bool(int(found[1], 16) & CAP_NET_ADMIN)


def _see_host(found: Survey) -> None:
    root = found.settings.root
    try:
        found.nft = LibNft()
        found.listing = found.nft.listing()
    except HostError as error:
        found.nft_error = error
        found.nft = found.nft if found.privileged else None
    except CtrportError as error:
        found.blind.append(Blind("nftables", error))
    try:
        found.host, found.routes = facts.read(), proc.read()
    except (CtrportError, OSError) as error:
        found.blind.append(Blind("this host's addresses and listeners", _told(error)))
    try:
        next((root / "networks").iterdir(), None)  # else a directory that is closed to us looks like an empty one
        found.networks = tuple(networks.load_all(root))
        found.used = frozenset(n.name for n in found.networks if _has_leases(root, n.name))
    except FileNotFoundError:
        pass
    except (CtrportError, OSError) as error:
        found.blind.append(Blind("ctrport's networks", _told(error)))


def _has_leases(root: Path, name: str) -> bool:
    directory = networks.path_of(root, name) / "leases"
    return directory.is_dir() and any(directory.iterdir())


async def _see_containers(found: Survey) -> None:
    settings = found.settings
    usable = found.nft if found.nft is not None and found.nft_error is None else _NoNft()
    try:
        async with Client(settings.address, timeout=settings.config.timeout_seconds) as client:
            found.look = await observe.look(settings, client, usable)
            if found.look.drift and found.watcher.answers:  # or a pass was at work
                await asyncio.sleep(SECOND_LOOK)
                found.watcher = await watcher.ask(settings)
                found.look = await observe.look(settings, client, usable)
            found.listing = found.look.listing
    except ContainerdError as error:
        found.containerd_error = error
    except (CtrportError, OSError) as error:
        found.blind.append(Blind("containerd's containers", _told(error)))


def _conclude(found: Survey) -> None:
    """Take the mappings from whoever knows best: the watcher, a look of our own, the kernel."""
    if found.watcher.answers:
        found.bindings = tuple(b for entry in found.watcher.containers for b in _bindings(entry))
        found.problems = {
            Key(e["namespace"], e["id"]): tuple(e["problems"]) for e in found.watcher.containers if e["problems"]
        }
    elif found.look is not None:
        reconciler = found.look.reconciler
        workloads = reconciler.snapshot.workloads
        found.bindings = tuple(b for key in workloads for b in reconciler.bindings(key))
        found.problems = {key: w.problems for key, w in workloads.items() if w.problems}
    elif found.listing is not None:
        found.bindings = tuple(_served(found.listing.elements))


def _bindings(entry: dict[str, Any]) -> Iterator[Binding]:
    """Read an entry of the watcher's answer."""
    addresses = [ip_address(text) for text in entry["addresses"]]
    for raw in entry["mappings"]:
        host_ip = ip_address(raw["host_ip"]) if raw["host_ip"] else None
        pool = tuple(raw["host_port_pool"]) if raw["host_port_pool"] else None
        mapping = PortMapping(
            container_port=raw["container_port"],
            protocol=Protocol(raw["protocol"]),
            host_ip=host_ip,
            host_port=None if pool else raw["host_port"],
            host_port_pool=pool,
        )
        ipv4 = next((a for a in addresses if isinstance(a, IPv4Address)), None)
        ipv6 = next((a for a in addresses if isinstance(a, IPv6Address)), None)
        yield Binding(
            owner=Key(entry["namespace"], entry["id"]),
            mapping=mapping,
            host_port=raw["host_port"],
            state=State(raw["state"]),
            reason=raw["reason"],
            ipv4=None if isinstance(host_ip, IPv6Address) else ipv4,
            ipv6=None if isinstance(host_ip, IPv4Address) else ipv6,
        )


def _served(elements: Elements) -> Iterator[Binding]:
    """Read what the kernel serves from the elements of our maps, one binding for each family."""
    for name in ruleset.MAPS:
        for key, element in elements.get(name, {}).items():
            for incumbent, port in ruleset.incumbents({name: {key: element}}):
                address = ip_address(element.value.partition(" . ")[0])
                yield Binding(
                    owner=incumbent.owner,
                    mapping=PortMapping(
                        container_port=incumbent.container_port,
                        protocol=incumbent.protocol,
                        host_ip=incumbent.host_ip,
                        host_port=port,
                    ),
                    host_port=port,
                    state=State.ACTIVE,
                    ipv4=address if isinstance(address, IPv4Address) else None,
                    ipv6=address if isinstance(address, IPv6Address) else None,
                )


def _told(error: CtrportError | OSError) -> CtrportError:
    return error if isinstance(error, CtrportError) else HostError(str(error))
