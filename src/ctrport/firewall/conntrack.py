"""UDP flows that lead elsewhere than the table says: found in one dump a family, and deleted.

Translation is decided by a flow's first packet. A UDP client that never falls silent keeps its flow, and so the
container that had the port before, or none if it began before the port was published. TCP needs no such care: a
new connection is a new flow.

A flow is judged by what its client asked for, the destination before translation: host address and host port.
By the container's port, as Docker looks for them, a flow older than its mapping is not found (moby#53384). Only
what is wrong is deleted: a flow that leads where the table says is left alone, and so are those to addresses that
are not this host's, and those that somebody else has translated.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from ctrport.firewall import ruleset
from ctrport.host.netlink import NESTED, Netlink, attribute, attributes
from ctrport.model.ports import Protocol
from ctrport.network import proc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrport.firewall.table import Elements

log = logging.getLogger(__name__)
NETLINK_NETFILTER = 12
GET, DELETE, STATISTICS = 0x101, 0x102, 0x104  # IPCTNL_MSG_CT_*, of NFNL_SUBSYS_CTNETLINK
# include/uapi/linux/netfilter/nfnetlink_conntrack.h: CTA_*, CTA_TUPLE_*, CTA_IP_*, CTA_PROTO_*
TUPLE_ORIG, TUPLE_REPLY, MARK, ID, ZONE, FILTER = 1, 2, 8, 12, 18, 25
TUPLE_IP, TUPLE_PROTO = 1, 2
IP_SOURCES, IP_DESTINATIONS = (1, 3), (2, 4)  # IPv4, IPv6
PROTO_NUM, PROTO_SOURCE, PROTO_DESTINATION = 1, 2, 3
FILTER_ORIG_FLAGS = 1
BY_PROTOCOL, BY_DESTINATION_PORT = 1 << 3, 1 << 5  # CTA_FILTER_FLAG_*; ignored before Linux 5.8, so all is checked
WILDCARD_MAPS = {4: ruleset.PUBLISHED4, 16: ruleset.PUBLISHED6}  # by the length of an address
HOST_IP_MAPS = {4: ruleset.PUBLISHED_ON4, 16: ruleset.PUBLISHED_ON6}
LOOPBACK6 = socket.inet_pton(socket.AF_INET6, "::1")
_GENERIC = struct.Struct("!BBH")  # nfgenmsg
_U16, _U32 = struct.Struct("!H"), struct.Struct("!I")


class _End(NamedTuple):
    """A direction of a flow: source and destination as that direction's packets have them."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int


def look() -> None:
    """Ask the kernel for something small about its flows. OSError where it cannot speak of them."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        list(netlink.dump(STATISTICS, _GENERIC.pack(socket.AF_UNSPEC, 0, 0)))


def udp_ports(*changed: Elements) -> set[int]:
    """Give the host ports of the UDP mappings among elements."""
    keys = (key for elements in changed for name in ruleset.MAPS for key in elements.get(name, ()))
    return {int(key.rpartition(" ")[2]) for key in keys if f"{Protocol.UDP} . " in key}


def forget_stale(elements: Elements, mark: int, ports: set[int] | None = None) -> int:
    """Delete the UDP flows to some host ports (None: to all) that do not lead where the elements say.

    Gives how many there were. A failure is logged and not raised: the rules stand, and old flows time out.
    """
    if ports is not None and not ports:
        return 0
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            stale = list(_stale(netlink, elements, mark, ports))
            codes = netlink.batch(DELETE, stale)
    except OSError as error:
        log.warning("could not look for UDP flows to earlier containers, they end when idle: %s", error)
        return 0
    failed = {code for code in codes if code not in (0, errno.ENOENT)}  # ENOENT: it has ended by itself
    for code in failed:
        log.warning("could not delete UDP flows to earlier containers: errno %d", code)
    if stale:
        log.info("deleted %d UDP flows that led elsewhere than their ports do now", codes.count(0))
    return codes.count(0)


def _stale(netlink: Netlink, elements: Elements, mark: int, ports: set[int] | None) -> Iterator[bytes]:
    """Give a request to delete for each flow that is to go."""
    own: frozenset[bytes] | None = None
    for data in [d for f in (socket.AF_INET, socket.AF_INET6) for d in netlink.dump(GET, _request(f, ports))]:
        rest = attributes(data, _GENERIC.size)
        original = _first(rest, ports)
        if original is None:
            continue
        found = dict(rest)
        to, port = original.destination, original.destination_port
        reply = _end(found[TUPLE_REPLY])
        if reply is None:
            continue
        leads_to = (reply.source, reply.source_port)
        target, host_ip = _target(elements, to, port)
        if target is None:  # as the table knows nothing of it, it is ours only if we have translated it
            is_marked = _U32.unpack(found.get(MARK, bytes(4)))[0] & mark
            wrong = bool(is_marked) and leads_to != (to, port)
        else:
            wrong = leads_to != target
            if wrong and not host_ip:
                own = own or frozenset(a.packed for a in proc.local_addresses())
                wrong = to in own or (len(to) == 4 and to[0] == 127)  # noqa: PLR2004 - 127.0.0.0/8
        if wrong:
            raw = next(content for kind, content in attributes(data, _GENERIC.size) if kind == TUPLE_ORIG)
            kept = [attribute(TUPLE_ORIG | NESTED, raw)]
            kept += [attribute(kind, found[kind]) for kind in (ID, ZONE) if kind in found]
            yield data[: _GENERIC.size] + b"".join(kept)


def _first(rest: Iterable[tuple[int, bytes]], ports: set[int] | None) -> _End | None:
    """Take the original direction, which the kernel writes first; None if the flow does not concern us."""
    for kind, content in rest:
        if kind == TUPLE_ORIG:
            original = _end(content)
            return original if original and (ports is None or original.destination_port in ports) else None
    return None


def _end(content: bytes) -> _End | None:
    """Read a tuple of a UDP flow; None for one of another protocol."""
    parts = dict(attributes(content))
    ip, protocol = dict(attributes(parts[TUPLE_IP])), dict(attributes(parts[TUPLE_PROTO]))
    if protocol[PROTO_NUM][0] != socket.IPPROTO_UDP:
        return None
    source = next(ip[kind] for kind in IP_SOURCES if kind in ip)
    destination = next(ip[kind] for kind in IP_DESTINATIONS if kind in ip)
    return _End(
        source,
        _U16.unpack(protocol[PROTO_SOURCE])[0],
        destination,
        _U16.unpack(protocol[PROTO_DESTINATION])[0],
    )


def _target(elements: Elements, to: bytes, port: int) -> tuple[tuple[bytes, int] | None, bool]:
    """Give where the table sends a packet, as its rules look it up, and whether by its host IP."""
    if to == LOOPBACK6:
        return None, False
    service = f"{Protocol.UDP} . {port}"
    size = len(to)
    element = elements.get(HOST_IP_MAPS[size], {}).get(f"{ip_address(to)} . {service}")
    host_ip = element is not None
    element = element or elements.get(WILDCARD_MAPS[size], {}).get(service)
    if element is None:
        return None, False
    address, _, container_port = element.value.partition(" . ")
    return (ip_address(address).packed, int(container_port)), host_ip


def _request(family: int, ports: set[int] | None) -> bytes:
    """Ask for UDP flows of a family; where one port is in question, for those to that port alone."""
    flags = BY_PROTOCOL
    protocol = attribute(PROTO_NUM, bytes([socket.IPPROTO_UDP]))
    if ports is not None and len(ports) == 1:
        flags |= BY_DESTINATION_PORT
        protocol += attribute(PROTO_DESTINATION, _U16.pack(*ports))
    return b"".join(
        [
            _GENERIC.pack(family, 0, 0),
            attribute(TUPLE_ORIG | NESTED, attribute(TUPLE_PROTO | NESTED, protocol)),
            attribute(FILTER | NESTED, attribute(FILTER_ORIG_FLAGS, struct.pack("=I", flags))),
        ]
    )
