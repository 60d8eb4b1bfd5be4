"""Published ports as people read them: the lines of `port`, the PORTS column of `ps`, and specs in short.

Knows only how to print. Must not know where the ports were found, or what a container is.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from ctrport.model.ports import bracketed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from ctrport.model.ports import PortMapping, Protocol


class Published(NamedTuple):
    """One host port in use for a container port; 0.0.0.0 and :: are every address of their family."""

    host_ip: IPv4Address | IPv6Address
    host_port: int
    container_port: int
    protocol: Protocol


def port_lines(
    published: Iterable[Published], port: int | None = None, protocol: Protocol | None = None
) -> list[str]:
    """Give `docker port` lines, `80/tcp -> [::]:8080`, by container port, protocol, family and address.

    A port or a protocol keeps only its own lines; with a port, only the right-hand sides are given.
    """
    lines = []
    for one in sorted(set(published), key=_order):
        if port not in (None, one.container_port) or protocol not in (None, one.protocol):
            continue
        host = f"{bracketed(one.host_ip)}:{one.host_port}"
        lines.append(host if port is not None else f"{one.container_port}/{one.protocol} -> {host}")
    return lines


def ports_column(published: Iterable[Published]) -> str:
    """Give the PORTS column of `docker ps`: `0.0.0.0:3000-3001->8080-8081/tcp`, runs joined by ", "."""
    items = []
    for first, count in sorted(_runs(published), key=lambda run: _order(run[0])):
        host, container = span(first.host_port, count), span(first.container_port, count)
        items.append(f"{bracketed(first.host_ip)}:{host}->{container}/{first.protocol}")
    return ", ".join(items)


def _runs(published: Iterable[Published]) -> Iterator[tuple[Published, int]]:
    """Yield the first of each run and its length: host and container port both rise by one.

    Ports of one run keep their distance, so that two host ranges for one container range stay two runs.
    """
    lanes: defaultdict[object, list[Published]] = defaultdict(list)
    for one in sorted(set(published), key=_order):
        lanes[one.host_ip, one.protocol, one.host_port - one.container_port].append(one)
    for lane in lanes.values():
        first, count = lane[0], 0
        for one in lane:
            if one.container_port != first.container_port + count:
                yield first, count
                first, count = one, 0
            count += 1
        yield first, count


def _order(one: Published) -> tuple[int, str, int, int, int]:
    return one.container_port, one.protocol, one.host_ip.version, int(one.host_ip), one.host_port


def span(first: int, count: int) -> str:
    """Give a number, or a range of so many."""
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"


def join(mappings: Iterable[PortMapping]) -> str:
    """Give specs that `parse_list` reads back as the same mappings; runs of ports are written as ranges.

    Written out, 10,000 ports would not fit into one argument of a command (128 KiB, MAX_ARG_STRLEN).
    """
    specs: list[str] = []
    run: list[PortMapping] = []
    for mapping in mappings:
        if run and not _follows(run[-1], mapping):
            specs.append(_range(run))
            run = []
        run.append(mapping)
    if run:
        specs.append(_range(run))
    return " ".join(specs)


def _follows(last: PortMapping, mapping: PortMapping) -> bool:
    return (
        last.host_port is not None
        and mapping.host_port == last.host_port + 1
        and mapping.container_port == last.container_port + 1
        and (mapping.protocol, mapping.host_ip) == (last.protocol, last.host_ip)
    )


def _range(run: list[PortMapping]) -> str:
    first, last = run[0], run[-1]
    if first is last:
        return str(first)
    host = f"{bracketed(first.host_ip)}:" if first.host_ip else ""
    ports = f"{first.host_port}-{last.host_port}:{first.container_port}-{last.container_port}"
    return f"{host}{ports}/{first.protocol}"
