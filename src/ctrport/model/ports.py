"""Port mappings, and the words for them: what `-p` and a container's annotation may say.

Knows the grammar of Docker's command line (compared with release 28.2.2) and what one command may not say
twice. Must not know containers, this host's addresses, or which ports are free.
"""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from ctrport.errors import PortSpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_PORT = 65535

_QUOTED_LENGTH = 80
_MOST_MAPPINGS = MAX_PORT * 3  # every port of every protocol; "1-65535 " a thousand times would fill the memory
_GRAMMAR = "write [HOST_IP:][HOST_PORT]:CONTAINER_PORT[/tcp|udp|sctp], such as 127.0.0.1:8080:80/tcp"
_LONG_GRAMMAR = "write target=80,published=8080,protocol=tcp; only target is required"
_LONG_KEYS = frozenset({"target", "published", "protocol"})
_IGNORED_KEYS = frozenset({"mode", "name", "app_protocol"})  # Docker's too; a single host has no use for them

# Not int(), str.isdigit() or str.split(): they take signs, underscores, full-width digits and every blank of
# Unicode.
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")
SPACE = " \t\n\r\f\v"  # between specs; other white space of Unicode is part of one, and makes it a bad one
_CHUNK = re.compile(f"[^{SPACE}]+")


class Protocol(enum.StrEnum):
    """A transport protocol that has ports."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """One container port and the host port asked for it; neither port nor pool: the host chooses.

    Without a host IP, every address of the host in both families; 0.0.0.0 is IPv4 only, :: is IPv6 only.
    Values that no spec can say raise ValueError, so that printing and parsing are inverse.
    """

    container_port: int
    protocol: Protocol = Protocol.TCP
    host_ip: IPv4Address | IPv6Address | None = None
    host_port: int | None = None
    host_port_pool: tuple[int, int] | None = None  # first and last; the first free one wins

    def __post_init__(self) -> None:
        if not 1 <= self.container_port <= MAX_PORT:
            raise ValueError(f"container port {self.container_port} is outside 1-{MAX_PORT}")
        if self.host_port is not None:
            if self.host_port_pool is not None:
                raise ValueError("a host port and a pool of host ports exclude each other")
            if not 1 <= self.host_port <= MAX_PORT:
                raise ValueError(f"host port {self.host_port} is outside 1-{MAX_PORT}")
        elif self.host_port_pool is not None:
            first, last = self.host_port_pool
            if not 1 <= first < last <= MAX_PORT:
                raise ValueError(f"host port pool {first}-{last} is not two ports or more in 1-{MAX_PORT}")
        if self.host_ip is not None and (fault := _address_fault(self.host_ip)):
            raise ValueError(f"host IP {self.host_ip} {fault}")

    def __str__(self) -> str:
        """Give the canonical spec, such as `[::1]:8080:80/tcp`; `parse` turns it into this mapping again."""
        host = "" if self.host_port is None else f"{self.host_port}"
        if self.host_port_pool is not None:
            host = "{}-{}".format(*self.host_port_pool)
        if self.host_ip is not None:
            host = f"{bracketed(self.host_ip)}:{host}"
        return f"{host}{':' if host else ''}{self.container_port}/{self.protocol}"

    def to_json(self) -> dict[str, object]:
        """Give what JSON can hold: numbers, null, and lists of two for pools."""
        return {
            "host_ip": None if self.host_ip is None else str(self.host_ip),
            "host_port": self.host_port,
            "host_port_pool": None if self.host_port_pool is None else list(self.host_port_pool),
            "container_port": self.container_port,
            "protocol": self.protocol.value,
        }


def bracketed(ip: IPv4Address | IPv6Address) -> str:
    """Give an address as it stands before a colon and a port: IPv6 in brackets."""
    return f"[{ip}]" if ip.version == 6 else str(ip)  # noqa: PLR2004 - the protocol's own number


def is_wildcard(address: IPv4Address | IPv6Address | None) -> bool:
    """Whether a host IP stands for every address (of its family, or of both when None)."""
    return address is None or address.is_unspecified


def parse(spec: str) -> tuple[PortMapping, ...]:
    """Read one spec, short (`8080:80/tcp`) or long (`target=80,published=8080`); ranges expanded in order.

    Raises PortSpecError, whose message quotes the spec in printable ASCII.
    """
    if "=" in spec:
        return _parse_long(spec)
    # All but the last two parts are the address, so that IPv6 needs no brackets: ::1:8080:80.
    published, _, target = spec.rpartition(":")
    container, _, protocol = target.partition("/")
    return _expand(spec, published, container, protocol)


def parse_list(value: str) -> tuple[tuple[PortMapping, ...], tuple[PortSpecError, ...]]:
    """Read an annotation's value: specs separated by commas or ASCII white space; never raises.

    A chunk between white space that contains "=" is one long form, since that has commas of its own.
    Gives the mappings of the good specs, and an error for each of the others.
    """
    mappings: list[PortMapping] = []
    errors: list[PortSpecError] = []
    for spec in specs(value):
        try:
            mappings.extend(parse(spec))
        except PortSpecError as error:
            errors.append(error)
        if len(mappings) > _MOST_MAPPINGS:
            errors.append(_error(value, f"only {_MOST_MAPPINGS} mappings are read", hint="publish fewer ports"))
            break
    return tuple(mappings[:_MOST_MAPPINGS]), tuple(errors)


def parse_port_argument(text: str) -> tuple[int, Protocol]:
    """Read a container port as `port` takes it, `80` or `80/udp`; raises PortSpecError."""
    port, _, protocol = text.partition("/")
    first, last = _port_range(text, port, "a container port")
    if first == 0 or first != last:
        raise _error(text, "one container port from 1 to 65535 is wanted", hint="write 80 or 80/udp")
    return first, _protocol(text, protocol)


def reject_duplicates(mappings: Iterable[PortMapping]) -> None:
    """Raise PortSpecError when one host port is named twice for overlapping addresses and one protocol.

    For the mappings of one command. Only exact ports count: a pool or the host's choice can step aside.
    One container port on several host ports is fine.
    """
    anywhere: dict[tuple[int, Protocol, int], PortMapping] = {}  # by family: any address at all
    wildcard: dict[tuple[int, Protocol, int], PortMapping] = {}  # by family: all its addresses
    exact: dict[tuple[IPv4Address | IPv6Address, Protocol, int], PortMapping] = {}
    for mapping in mappings:
        ip, port = mapping.host_ip, mapping.host_port
        if port is None:
            continue
        for family in (4, 6) if ip is None else (ip.version,):
            key = (family, mapping.protocol, port)
            if ip is None or ip.is_unspecified:
                earlier = anywhere.get(key)
                wildcard[key] = mapping
            else:
                address = (ip, mapping.protocol, port)
                earlier = wildcard.get(key) or exact.get(address)
                exact[address] = mapping
            if earlier is not None:
                raise PortSpecError(
                    f"host port {port}/{mapping.protocol} is asked for twice: by {earlier} and by {mapping}",
                    hint="give one of them another host port, or each an address of its own",
                )
            anywhere.setdefault(key, mapping)


def specs(value: str) -> Iterator[str]:
    """Give the specs of an annotation's value, unread."""
    for chunk in _CHUNK.findall(value):
        if "=" in chunk:
            yield chunk
        else:
            yield from filter(None, chunk.split(","))  # "80, 81" and a last comma leave empty pieces


def _parse_long(spec: str) -> tuple[PortMapping, ...]:
    fields: dict[str, str] = {}
    for item in spec.split(","):
        key, equals, text = item.partition("=")
        if not equals:
            raise _error(spec, f"{_quote(item)} is not KEY=VALUE", hint=_LONG_GRAMMAR)
        if key not in _LONG_KEYS | _IGNORED_KEYS:
            raise _error(spec, f"there is no key {_quote(key)}", hint=_LONG_GRAMMAR)
        if key in fields:
            raise _error(spec, f"{key} is given twice", hint=_LONG_GRAMMAR)
        fields[key] = text
    if "target" not in fields:
        raise _error(spec, "target, the container port, is missing", hint=_LONG_GRAMMAR)
    return _expand(spec, fields.get("published", ""), fields["target"], fields.get("protocol", ""))


def _expand(spec: str, published: str, container: str, protocol: str) -> tuple[PortMapping, ...]:
    """Pair container ports with host ports; `published` is [[IP]:][PORTS]."""
    address, _, host = published.rpartition(":")
    host_ip = _host_ip(spec, address)
    proto = _protocol(spec, protocol)
    first, last = _port_range(spec, container, "a container port")
    if first == 0:
        raise _error(spec, "there is no container port 0", hint="0 chooses a port on the host only: 0:80")
    low, high = _port_range(spec, host, "a host port") if host else (0, 0)
    count = last - first + 1
    if host and high - low != last - first and count > 1:
        raise _error(
            spec,
            f"{_ports(high - low + 1, 'host')} for {_ports(count, 'container')}",
            hint="make both ranges equally long, or leave the host port out to have free ones chosen",
        )
    if low == 0 < high:
        raise _error(spec, "a range of host ports cannot begin at 0", hint="0 alone means any free port")
    if high > low and count == 1:
        pool = (low, high)
        return (PortMapping(container_port=first, protocol=proto, host_ip=host_ip, host_port_pool=pool),)
    shift = low - first
    return tuple(
        PortMapping(container_port=port, protocol=proto, host_ip=host_ip, host_port=port + shift if low else None)
        for port in range(first, last + 1)
    )


def _host_ip(spec: str, text: str) -> IPv4Address | IPv6Address | None:
    if not text:
        return None
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ip = ip_address(bare)
    except ValueError:
        raise _error(
            spec, f"{_quote(text)} is not an IP address", hint=f"names are not looked up; {_GRAMMAR}"
        ) from None
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None and ip.scope_id is None:
        ip = ip.ipv4_mapped  # as Go's net.IP does, which Docker prints from
    if fault := _address_fault(ip):
        raise _error(spec, f"host IP {_quote(text)} {fault}", hint="give an address of this host, without a zone")
    return ip


@functools.lru_cache(maxsize=64)  # a range of 10,000 ports asks about one address 10,000 times
def _address_fault(ip: IPv4Address | IPv6Address) -> str | None:
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        return "has a zone"
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return "is an IPv4 address in IPv6 form"
    return "is a multicast address" if ip.is_multicast else None


def _protocol(spec: str, text: str) -> Protocol:
    try:
        return Protocol(text.lower() or "tcp")
    except ValueError:
        raise _error(spec, f"there is no protocol {_quote(text)}", hint="use tcp, udp or sctp") from None


def _port_range(spec: str, text: str, what: str) -> tuple[int, int]:
    """Read `N` or `N-M`, 0 included; `what` names the place in the message."""
    if not text:
        raise _error(spec, f"{what} is missing", hint=_GRAMMAR)
    match = _RANGE.fullmatch(text)
    if match is None:
        raise _error(spec, f"{_quote(text)} is not {what} or a range of them", hint=_GRAMMAR)
    first = _number(spec, match[1])
    last = first if match[2] is None else _number(spec, match[2])
    if last < first:
        raise _error(spec, f"{_quote(text)} runs backwards", hint=f"write {last}-{first}")
    return first, last


def _number(spec: str, digits: str) -> int:
    # int() refuses more than 4,300 digits with an error of its own, leading zeros included.
    significant = digits.lstrip("0")
    if len(significant) > len(str(MAX_PORT)) or int(significant or "0") > MAX_PORT:
        raise _error(spec, f"{_quote(digits)} is above {MAX_PORT}, the highest port", hint=_GRAMMAR)
    return int(significant or "0")


def _ports(count: int, place: str) -> str:
    return f"{count} {place} port{'' if count == 1 else 's'}"


def _error(spec: str, fault: str, *, hint: str) -> PortSpecError:
    return PortSpecError(f"port spec {_quote(spec)}: {fault}", hint=hint)


def _quote(text: str) -> str:
    """Quote in printable ASCII: what a stranger wrote may move a cursor, or look like another digit."""
    kept = text[:_QUOTED_LENGTH]
    while len(ascii(kept)) > _QUOTED_LENGTH + 2:
        kept = kept[:-1]  # an escape is up to ten characters, and not to be cut in two
    return ascii(text) if kept == text else f"{kept!a}... ({len(text)} characters)"
