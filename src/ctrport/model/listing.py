"""Published ports as people read them: the lines of `port`, the PORTS column of `ps`, and specs in short.

Knows only how to print. Must not know where the ports were found, or what a container is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ctrport.model.ports import bracketed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from ctrport.model.ports import PortMapping, Protocol

T = TypeVar("T")


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
    in_lanes = sorted(set(published), key=_lane)
    for first, last in sorted(runs(in_lanes, _is_next), key=lambda run: _order(run[0])):
        count = last.host_port - first.host_port + 1
        host, container = span(first.host_port, count), span(first.container_port, count)
        items.append(f"{bracketed(first.host_ip)}:{host}->{container}/{first.protocol}")
    return ", ".join(items)


def runs(items: Iterable[T], follows: Callable[[T, T], bool]) -> Iterator[tuple[T, T]]:
    """Give first and last of each run of neighbours of which every one follows the one before."""
    run: tuple[T, T] | None = None
    for item in items:
        if run is not None and follows(run[1], item):
            run = run[0], item
            continue
        if run is not None:
            yield run
        run = item, item
    if run is not None:
        yield run


def _is_next(last: Published, one: Published) -> bool:
    return one.container_port == last.container_port + 1 and _lane(one)[:-1] == _lane(last)[:-1]


def _lane(one: Published) -> tuple[int, int, str, int, int]:
    """Order by what the ports of a run share, then by port; two host ranges for one container range share less."""
    return one.host_ip.version, int(one.host_ip), one.protocol, one.host_port - one.container_port, one.host_port


def _order(one: Published) -> tuple[int, str, int, int, int]:
    return one.container_port, one.protocol, one.host_ip.version, int(one.host_ip), one.host_port


def span(first: int, count: int) -> str:
    """Give a number, or a range of so many."""
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"


def join(mappings: Iterable[PortMapping]) -> str:
    """Give specs that `parse_list` reads back as the same mappings; runs of ports are written as ranges.

    Written out, 10,000 ports would not fit into one argument of a command (128 KiB, MAX_ARG_STRLEN).
    """
    return " ".join(_range(first, last) for first, last in runs(mappings, _follows))


def _follows(last: PortMapping, mapping: PortMapping) -> bool:
    return (
        last.host_port is not None
        and mapping.host_port == last.host_port + 1
        and mapping.container_port == last.container_port + 1
        and (mapping.protocol, mapping.host_ip) == (last.protocol, last.host_ip)
    )


def _range(first: PortMapping, last: PortMapping) -> str:
    if first is last:
        return str(first)
    host = f"{bracketed(first.host_ip)}:" if first.host_ip else ""
    ports = f"{first.host_port}-{last.host_port}:{first.container_port}-{last.container_port}"
    return f"{host}{ports}/{first.protocol}"
