"""What our table holds, straight from the kernel: rules by their comments, elements with their counts.

libnftables lists 20,000 elements in about a second of processor time. Neither a repair nor a pass can wait for
that; the kernel's own dump takes a quarter.
"""

from __future__ import annotations

import errno
import struct
import sys
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ctrport.firewall import rules
from ctrport.firewall.refused import refused
from ctrport.firewall.rules import GENERIC, comment, text
from ctrport.firewall.ruleset import SETS, TABLE
from ctrport.firewall.table import Element, Listing
from ctrport.host.netlink import TYPE_MASK, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.firewall.table import Count, Counts, Elements
    from ctrport.host.netlink import Netlink

GET_ELEMENTS = 10 << 8 | 13  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSETELEM: include/uapi/linux/netfilter/nf_tables.h
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3
KEY, DATA, USERDATA, EXPRESSION = 1, 2, 6, 7  # of an element
EXPRESSION_DATA, BYTES, PACKETS = 2, 1, 2  # NFTA_EXPR_DATA, NFTA_COUNTER_*
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
SIZES = {"ipv6_addr": 16, "ifname": 16}  # bytes in a key or value; all others take 4
SERVICE = ["inet_proto", "inet_service"]  # of most keys
TYPES = {s.name: (s.key_type.split(" . "), s.value_type.split(" . ")) for s in SETS}
_HEADER = struct.Struct("=HH")
# A counter's name, and the header of its data and of its bytes; then come 8 bytes, another header and 8 bytes.
COUNTER = bytes.fromhex("0c000100 636f756e74657200 1c000200 0c000100") if sys.byteorder == "little" else b"none"
COUNTER_SIZE = 40
_comment = lru_cache(maxsize=4096)(comment)  # of all ports of a container it is the same
_U64 = struct.Struct("!Q")


def read(netlink: Netlink, *, elements: bool = True) -> Listing | None:
    """Give our table, if need be its rules alone; None when it, or a set of it, is missing.

    Of sets that do not belong there only the names are read. HostError without CAP_NET_ADMIN, KernelError for all
    else.
    """
    found: Elements = {}
    counts: Counts = {}
    try:
        there = rules.read(netlink)
        if elements:
            found = {name: {} for name in there.sets}
        for name in TYPES if elements else ():
            found[name] = {}
            wanted = attribute(LIST_TABLE, f"{TABLE}\0".encode()) + attribute(LIST_SET, f"{name}\0".encode())
            for message in netlink.dump(GET_ELEMENTS, GENERIC + wanted):
                for element, count in _elements(name, message):
                    found[name][element.key] = element
                    if count is not None:
                        counts[name, element] = count
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise refused(f"list table {TABLE}", error) from error
    return Listing(chains=there.chains, elements=found, fingerprint=there.digest, counts=counts)


def _elements(name: str, message: bytes) -> Iterator[tuple[Element, Count | None]]:
    """Give the elements of one message of a dump."""
    key_types, value_types = TYPES[name]
    for kind, listed in attributes(message, len(GENERIC)):
        if kind != LIST_ELEMENTS:
            continue
        for _, raw in attributes(listed):
            key, value, said, count = "", "", "", None
            at = 0
            while at + _HEADER.size <= len(raw):  # by hand: `attributes` would cost a third more
                length, part = _HEADER.unpack_from(raw, at)
                content = raw[at + _HEADER.size : at + length]
                part &= TYPE_MASK
                if part == KEY:
                    key = _joined(_value(content), key_types)
                elif part == DATA:
                    value = _joined(_value(content), value_types)
                elif part == USERDATA:
                    said = _comment(content)
                elif part == EXPRESSION:
                    count = _count(content)
                at += (length + 3) & ~3
            yield Element(key, value, said), count


def _value(nested: bytes) -> bytes:
    """Give NFTA_DATA_VALUE, which is all that there is of a key or an address."""
    return nested[_HEADER.size : _HEADER.unpack_from(nested)[0]]


def _joined(value: bytes, types: list[str]) -> str:
    if types == SERVICE:
        return f"{PROTOCOLS.get(value[0], value[0])} . {value[4] << 8 | value[5]}"
    parts, at = [], 0
    for kind in types:
        size = SIZES.get(kind, 4)
        raw = value[at : at + size]
        if kind == "inet_service":
            parts.append(str(raw[0] << 8 | raw[1]))
        elif kind == "inet_proto":
            parts.append(str(PROTOCOLS.get(raw[0], raw[0])))
        else:
            parts.append(f'"{text(raw)}"' if kind == "ifname" else _address(raw))
        at += size
    return " . ".join(parts)


@lru_cache(maxsize=4096)  # of all ports of a container it is the same
def _address(raw: bytes) -> str:
    return str(ip_address(raw))


def _count(expression: bytes) -> Count | None:
    """Read a counter; None for another expression, which somebody else must have written."""
    if expression.startswith(COUNTER) and len(expression) == COUNTER_SIZE:  # as every kernel so far writes it
        return _U64.unpack_from(expression, 32)[0], _U64.unpack_from(expression, 20)[0]
    parts = dict(attributes(expression))
    fields = dict(attributes(parts.get(EXPRESSION_DATA, b"")))
    if len(fields.get(PACKETS, b"")) != _U64.size or len(fields.get(BYTES, b"")) != _U64.size:
        return None
    return _U64.unpack(fields[PACKETS])[0], _U64.unpack(fields[BYTES])[0]
