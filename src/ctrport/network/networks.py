"""The networks that `ctrport run` puts containers on: one file each under the root directory.

A network is a bridge with an IPv4 subnet and, where the host has IPv6, a unique local /64 (RFC 4193). Its subnet
is chosen once, off the host's routes, and kept: containers' addresses must not change under them. What a network
may be is known by `define`; here it is data, and a file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrport.errors import HostError, NotFoundError
from ctrport.run.names import IDENTIFIER

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT = "default"
DEFAULT_BRIDGE = "ctrport0"
# /20s of 10.208.0.0/12: away from Docker (172.17-31, 192.168), podman (10.88), nerdctl (10.4), kubeadm's usual
# pod and service ranges (10.244, 10.96) and the default networks of clouds.
CANDIDATES = tuple(IPv4Network("10.208.0.0/12").subnets(new_prefix=20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A bridge network. Unless `gateway` says otherwise, the first address of the subnet is the gateway."""

    name: str
    bridge: str
    ipv4: IPv4Network
    ipv6: IPv6Network | None = None
    gateway: IPv4Address | None = None
    mtu: int | None = None  # None: that of the default route's link when the bridge is made
    internal: bool = False  # nothing in from other networks, nothing out to them, no published ports
    isolate: bool = False  # containers do not reach each other but by published ports

    @property
    def gateway4(self) -> IPv4Address:
        return self.gateway or self.ipv4[1]

    @property
    def gateway6(self) -> IPv6Address | None:
        return self.ipv6_of(self.gateway4)

    def ipv6_of(self, ipv4: IPv4Address) -> IPv6Address | None:
        """Give the IPv6 address that goes with an IPv4 one: the same number within its subnet."""
        return self.ipv6[int(ipv4) - int(self.ipv4.network_address)] if self.ipv6 else None

    def to_json(self) -> dict[str, Any]:
        """Give what is stored, and what `network ls` and `inspect` print beside the containers."""
        return {
            "name": self.name,
            "bridge": self.bridge,
            "ipv4": str(self.ipv4),
            "gateway4": str(self.gateway4),
            "ipv6": str(self.ipv6) if self.ipv6 else None,
            "gateway6": str(self.gateway6) if self.gateway6 else None,
            "mtu": self.mtu,
            "internal": self.internal,
            "isolate": self.isolate,
        }


def path_of(root: Path, name: str) -> Path:
    """Give the directory of a network: its description and its leases."""
    return root / "networks" / name


def load(root: Path, name: str) -> Network:
    """Read a network's description. NotFoundError when there is none of that name."""
    path = path_of(root, name) / "network.json"
    hint = "the first run makes it" if name == DEFAULT else "ctrport network ls; ctrport network create"
    missing = NotFoundError(f"no network named {name!r}", hint=hint)
    if not IDENTIFIER.fullmatch(name):  # nor is a path one
        raise missing
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise missing from None
    except (OSError, ValueError) as error:
        raise HostError(f"cannot read the network {name}: {path}: {error}", hint="run as root") from error
    try:
        # The first files had name, bridge, ipv4 and ipv6 alone.
        ipv4 = IPv4Network(raw["ipv4"])
        gateway = IPv4Address(raw.get("gateway4", ipv4[1]))
        return Network(
            name=raw["name"],
            bridge=raw["bridge"],
            ipv4=ipv4,
            ipv6=IPv6Network(raw["ipv6"]) if raw["ipv6"] else None,
            gateway=gateway if gateway != ipv4[1] else None,
            mtu=raw.get("mtu"),
            internal=raw.get("internal", False),
            isolate=raw.get("isolate", False),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(f"cannot read the network {name}: {path}: {error!r}", hint="mend the file") from error


def load_all(root: Path) -> list[Network]:
    """Read every network under the root directory."""
    return [load(root, p.parent.name) for p in sorted(root.glob("networks/*/network.json"))]


def load_or_create_default(root: Path) -> Network:
    """Give the default network; on first use choose its subnets. Call it with the writer's lock held."""
    try:
        return load(root, DEFAULT)
    except NotFoundError:
        from ctrport.network import proc  # noqa: PLC0415 - needed once on a host

        network = Network(
            name=DEFAULT,
            bridge=DEFAULT_BRIDGE,
            ipv4=choose_subnet([*(r.network for r in proc.read().routes), *(n.ipv4 for n in load_all(root))]),
            ipv6=unique_local() if has_ipv6() else None,
        )
        save(root, network)
        return network


def save(root: Path, network: Network) -> None:
    """Write a network's description, whole or not at all."""
    directory = path_of(root, network.name)
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f".network.json.{os.getpid()}"
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(network.to_json(), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())  # else a power failure may leave an empty file under the final name
    draft.rename(directory / "network.json")


def choose_subnet(taken: Iterable[IPv4Network | IPv6Network]) -> IPv4Network:
    """Give the first candidate that overlaps none of the networks taken; a default route takes nothing."""
    used = [n for n in taken if isinstance(n, IPv4Network) and n.prefixlen]
    for candidate in CANDIDATES:
        if not any(candidate.overlaps(n) for n in used):
            return candidate
    raise HostError(
        f"no free subnet for containers: this host's routes overlap all of {CANDIDATES[0].supernet(new_prefix=12)}",
        hint="ip route; ctrport network create default --subnet with one that is free",
    )


def has_ipv6() -> bool:
    """Say whether a new interface of this host can have IPv6 addresses: else the kernel answers EACCES."""
    try:
        return Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").read_text("ascii").strip() == "0"
    except FileNotFoundError:
        return False


def unique_local() -> IPv6Network:
    """Give a random unique local /64: fd, 40 random bits, subnet 0 (RFC 4193, section 3.1)."""
    return IPv6Network(((0xFD << 120) | (int.from_bytes(os.urandom(5)) << 80), 64))
