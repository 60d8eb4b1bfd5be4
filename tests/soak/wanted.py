"""What should be published, worked out naively from what `ctr` lists.

Slow and simple on purpose, and without a line of ctrport's code: every container is looked at one after the
other, in the order of creation, and has what nobody before it has. It reads only what the soak writes: one
annotation with specs of the forms `8080:80`, `8000-8002:80-82`, `8200-8220:80` (a pool), `80` (any port), each with
or without a host IP and a protocol.
"""

from __future__ import annotations

import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from containerd_instance import Containerd

SPEC = re.compile(
    r"(?:(?:\[(?P<ip6>[^\]]+)\]|(?P<ip4>\d+(?:\.\d+){3})):)?"
    r"(?:(?P<low>\d*)(?:-(?P<high>\d+))?:)?"
    r"(?P<to>\d+)(?:-(?P<to_high>\d+))?(?:/(?P<proto>tcp|udp))?"
)
UNSPECIFIED = {"0.0.0.0": 4, "::": 6}  # noqa: S104
AUTOMATIC = (32768, 60999)


@dataclasses.dataclass(frozen=True, slots=True)
class Container:
    """A container whose task is there, and what it asks for."""

    name: str  # "namespace/id"
    created: str
    publish: str
    status: str
    pid: int
    address: dict[int, str]  # by IP version
    link: str  # interface of the host towards it


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """One wish for a port."""

    container: str
    protocol: str
    host_ip: str | None  # None: any
    ports: tuple[int, int]  # one of these
    target: int
    address: dict[int, str]  # of the families that it is for

    @property
    def exact(self) -> bool:
        return self.ports[0] == self.ports[1]

    def meets(self, other: Mapping) -> bool:
        """Whether both cannot be had at once; of exact ones."""
        return (
            (self.protocol, self.ports) == (other.protocol, other.ports)
            and not self.address.keys().isdisjoint(other.address)
            and (self.host_ip is None or other.host_ip is None or self.host_ip == other.host_ip)
        )


def read(containerd: Containerd, published: dict[str, set[str]]) -> list[Container]:
    """Give the live containers of all namespaces that ask for ports, the oldest first.

    `published` has the specs that `ctrport publish` has said to have added, by container.
    """
    found: list[Container] = []
    with ThreadPoolExecutor(4) as pool:
        for namespace in containerd.namespaces():
            lines = containerd.ctr("-n", namespace, "tasks", "list").splitlines()[1:]
            tasks = {name: (int(pid), status) for name, pid, status in (line.split() for line in lines)}
            live = [name for name, (_, status) in tasks.items() if status in {"RUNNING", "PAUSED", "PAUSING"}]
            more = [published.get(f"{namespace}/{name}", set()) for name in live]
            for container in pool.map(
                lambda n, specs, ns=namespace, t=tasks: _read(containerd, ns, n, t[n], specs), live, more
            ):
                found += [container] if container else []
    return sorted(found, key=lambda container: container.created)


def _read(
    containerd: Containerd, namespace: str, name: str, task: tuple[int, str], published: set[str]
) -> Container | None:
    pid, status = task
    said = containerd.ctr("-n", namespace, "containers", "info", name, check=False)
    if not said.startswith("{"):
        return None
    info: dict[str, Any] = json.loads(said)
    annotation = info["Spec"].get("annotations", {}).get("ctrport.io/publish", "")
    publish = " ".join([annotation, *sorted(published)]).strip(", ")
    inside = containerd.netns.run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", "addr", check=False).stdout
    if not publish or not inside:
        return None
    address: dict[int, str] = {}
    for link in json.loads(inside):
        for entry in link["addr_info"]:
            if entry["scope"] == "global":
                address.setdefault(6 if entry["family"] == "inet6" else 4, entry["local"])
    towards = ""
    if address:
        route = containerd.netns.run("ip", "-j", "route", "get", address[min(address)]).stdout
        towards = json.loads(route)[0]["dev"]
    created = info["CreatedAt"]
    # Without trailing zeros of the fraction: made comparable as text.
    whole, _, fraction = created.rstrip("Z").partition(".")
    return Container(f"{namespace}/{name}", f"{whole}.{fraction:0<9}", publish, status, pid, address, towards)


def wishes(container: Container) -> list[Mapping]:
    """Give what a container asks for, range by range made single."""
    found: list[Mapping] = []
    for text in re.split(r"[,\s]+", container.publish.strip()):
        match = SPEC.fullmatch(text)
        if match is None:
            raise AssertionError(f"the soak wrote what its own model cannot read: {text!r}")
        low, high, to, to_high, proto = match.group("low", "high", "to", "to_high", "proto")
        host_ip = match["ip6"] or match["ip4"]
        families = [ip_address(host_ip).version] if host_ip else [4, 6]
        address = {family: container.address[family] for family in families if family in container.address}
        if not address:
            continue
        if host_ip in UNSPECIFIED:
            host_ip = None
        first, last = int(to), int(to_high or to)
        for target in range(first, last + 1):
            if not low:
                ports = AUTOMATIC
            elif last > first or not high:
                ports = (int(low) + target - first,) * 2
            else:
                ports = (int(low), int(high))
            found.append(Mapping(container.name, proto or "tcp", host_ip, ports, target, address))
    return found


def mappings(containers: list[Container]) -> list[Mapping]:
    """Give the wishes that are granted: the oldest container's first."""
    granted: dict[object, list[Mapping]] = {}
    for container in containers:
        for wish in wishes(container):
            there = granted.setdefault((wish.protocol, wish.ports), [])
            if not (wish.exact and any(wish.meets(other) for other in there)):
                there.append(wish)
    return [mapping for there in granted.values() for mapping in there]
