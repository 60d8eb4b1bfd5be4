"""What the kernel holds, by the program `nft`, and how it differs from what is wanted."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lab import Netns
    from soak.wanted import Container, Mapping

MAPS = {(4, False): "published4", (6, False): "published6", (4, True): "published_on4", (6, True): "published_on6"}
TABLE = ("list", "table", "inet", "ctrport")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One translation: an element of one of the maps."""

    map: str
    host_ip: str
    protocol: str
    port: int
    target: str
    target_port: int
    comment: str

    def __str__(self) -> str:
        where = f"{self.host_ip or '*'}:{self.port}/{self.protocol}"
        return f"{self.map} {where} -> {self.target}:{self.target_port} ({self.comment})"


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """The table's content."""

    entries: frozenset[Entry]
    names: dict[str, frozenset[tuple[str, ...]]]  # of the sets of interfaces


def read(host: Netns) -> Kernel | None:
    """List the table; None when there is none."""
    said = host.run("nft", "-j", *TABLE, check=False)
    if said.returncode:
        return None
    entries: set[Entry] = set()
    names: dict[str, frozenset[tuple[str, ...]]] = {}
    for item in json.loads(said.stdout)["nftables"]:
        if found := item.get("map"):
            entries |= {_entry(found["name"], *raw) for raw in found.get("elem", ())}
        elif found := item.get("set"):
            names[found["name"]] = frozenset(tuple(_parts(raw)) for raw in found.get("elem", ()))
    return Kernel(frozenset(entries), names)


def rules(host: Netns) -> str:
    """Give the table without its elements and counts."""
    return host.run("nft", "--stateless", "--terse", *TABLE, check=False).stdout


def _entry(name: str, key: Any, value: Any) -> Entry:
    comment = ""
    if "elem" in key:
        comment = key["elem"].get("comment", "")
        key = key["elem"]["val"]
    *host_ip, protocol, port = _parts(key)
    target, target_port = _parts(value)
    return Entry(name, "".join(host_ip), protocol, int(port), target, int(target_port), comment)


def _parts(raw: Any) -> list[str]:
    if isinstance(raw, dict) and "elem" in raw:
        raw = raw["elem"]["val"]
    return [str(each) for each in (raw["concat"] if isinstance(raw, dict) else [raw])]


def differences(
    kernel: Kernel | None, granted: Iterable[Mapping], containers: Iterable[Container], bridges: Iterable[str]
) -> list[str]:
    """Say how the kernel differs from what is wanted; nothing when it does not."""
    if kernel is None:
        return ["there is no table"]
    left = set(kernel.entries)
    found: list[str] = []
    floating: list[Mapping] = []
    for mapping in granted:
        if not mapping.exact:
            floating.append(mapping)
            continue
        for entry in _entries(mapping, mapping.ports[0]):
            found += [] if entry in left else [f"missing: {entry}"]
            left.discard(entry)
    for mapping in floating:
        low, high = mapping.ports
        ports = {entry.port for entry in left if low <= entry.port <= high}
        port = next((p for p in sorted(ports) if left.issuperset(_entries(mapping, p))), None)
        if port is None:
            found.append(f"missing: a port of {low}-{high}/{mapping.protocol} for {mapping.container}")
        else:
            left.difference_update(_entries(mapping, port))
    found += [f"too much: {entry}" for entry in sorted(left)]
    wanted_links = {*bridges, *(container.link for container in containers if container.link)}
    for name, wanted in (
        ("bridges", {(bridge,) for bridge in bridges}),
        ("same_link", {(link, link) for link in wanted_links}),
    ):
        if kernel.names.get(name) != wanted:
            found.append(f"set {name}: {sorted(kernel.names.get(name, ()))} and not {sorted(wanted)}")
    return found


def _entries(mapping: Mapping, port: int) -> list[Entry]:
    return [
        Entry(
            MAPS[family, mapping.host_ip is not None],
            mapping.host_ip or "",
            mapping.protocol,
            port,
            target,
            mapping.target,
            mapping.container,
        )
        for family, target in mapping.address.items()
    ]


def port_of(kernel: Kernel, mapping: Mapping) -> int:
    """Give the host port that a mapping has, once nothing differs."""
    if mapping.exact:
        return mapping.ports[0]
    low, high = mapping.ports
    ports = {entry.port for entry in kernel.entries if low <= entry.port <= high}
    return next(p for p in sorted(ports) if kernel.entries.issuperset(_entries(mapping, p)))
