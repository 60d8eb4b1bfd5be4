"""What our table holds, straight from the kernel: elements with their counts, and rules by their comments.

libnftables lists 20,000 elements in about a second of processor time, and reads them all even for a listing of
rules alone. A repair cannot wait for that; the kernel's own dump takes a quarter. What rules say is not read here.
"""

from __future__ import annotations

import errno
import struct
import sys
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ctrport.errors import KernelError
from ctrport.firewall.ruleset import FAMILY, SETS, TABLE
from ctrport.firewall.table import Element, Listing
from ctrport.host.netlink import TYPE_MASK, Netlink, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.firewall.table import Count, Counts, Elements

NETLINK_NETFILTER = 12
# include/uapi/linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES with NFT_MSG_GETCHAIN, _GETRULE and _GETSETELEM
GET_CHAIN, GET_RULE, GET_ELEMENTS = 10 << 8 | 4, 10 << 8 | 7, 10 << 8 | 13
CHAIN_TABLE, CHAIN_NAME, CHAIN_POLICY = 1, 3, 5
RULE_TABLE, RULE_CHAIN, RULE_USERDATA = 1, 2, 7
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3
KEY, DATA, USERDATA, EXPRESSION = 1, 2, 6, 7  # of an element
EXPRESSION_DATA, BYTES, PACKETS = 2, 1, 2  # NFTA_EXPR_DATA, NFTA_COUNTER_*
COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT, NFTNL_UDATA_SET_ELEM_COMMENT of libnftnl
ACCEPT = 1
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
SIZES = {"ipv6_addr": 16, "ifname": 16}  # bytes in a key or value; all others take 4
SERVICE = ["inet_proto", "inet_service"]  # of most keys
TYPES = {s.name: (s.key_type.split(" . "), s.value_type.split(" . ")) for s in SETS}
_GENERIC = struct.pack("!BBH", {"inet": 1}[FAMILY], 0, 0)  # nfgenmsg
_HEADER = struct.Struct("=HH")
# A counter's name, and the header of its data and of its bytes; then come 8 bytes, another header and 8 bytes.
COUNTER = bytes.fromhex("0c000100 636f756e74657200 1c000200 0c000100") if sys.byteorder == "little" else b"none"
COUNTER_SIZE = 40
_U16, _U32, _U64 = struct.Struct("!H"), struct.Struct("!I"), struct.Struct("!Q")


def read() -> Listing | None:
    """Give what can be compared of our table, but for its fingerprint; None when a part of it is missing."""
    name = f"{TABLE}\0".encode()
    elements: Elements = {}
    counts: Counts = {}
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            chains = _chains(netlink, name)
            for each in SETS:
                found = elements[each.name] = {}
                wanted = attribute(LIST_TABLE, name) + attribute(LIST_SET, f"{each.name}\0".encode())
                for message in netlink.dump(GET_ELEMENTS, _GENERIC + wanted):
                    for element, count in _elements(each.name, message):
                        found[element.key] = element
                        if count is not None:
                            counts[each.name, element] = count
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise KernelError(f"the kernel refused to tell what table {TABLE} holds: {error}") from error
    return Listing(chains=chains, elements=elements, counts=counts)


def _chains(netlink: Netlink, table: bytes) -> dict[str, tuple[str, ...]]:
    """Give each chain's rules by their comments, as a listing by libnftables has them."""
    found: dict[str, list[str]] = {}
    for message in netlink.dump(GET_CHAIN, _GENERIC):
        fields = dict(attributes(message, len(_GENERIC)))
        if fields[CHAIN_TABLE] == table:
            dropping = CHAIN_POLICY in fields and _U32.unpack(fields[CHAIN_POLICY])[0] != ACCEPT
            found[_text(fields[CHAIN_NAME])] = ["policy drop"] if dropping else []
    for message in netlink.dump(GET_RULE, _GENERIC + attribute(RULE_TABLE, table)):
        fields = dict(attributes(message, len(_GENERIC)))
        if fields[RULE_TABLE] == table:
            found.setdefault(_text(fields[RULE_CHAIN]), []).append(_comment(fields.get(RULE_USERDATA, b"")))
    return {name: tuple(rules) for name, rules in found.items()}


def _elements(name: str, message: bytes) -> Iterator[tuple[Element, Count | None]]:
    """Give the elements of one message of a dump."""
    key_types, value_types = TYPES[name]
    for kind, listed in attributes(message, len(_GENERIC)):
        if kind != LIST_ELEMENTS:
            continue
        for _, raw in attributes(listed):
            key, value, comment, count = "", "", "", None
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
                    comment = _comment(content)
                elif part == EXPRESSION:
                    count = _count(content)
                at += (length + 3) & ~3
            yield Element(key, value, comment), count


def _value(nested: bytes) -> bytes:
    """Give NFTA_DATA_VALUE, which is all that there is of a key or an address."""
    return nested[_HEADER.size : _HEADER.unpack_from(nested)[0]]


def _joined(value: bytes, types: list[str]) -> str:
    if types == SERVICE:
        return f"{PROTOCOLS.get(value[0], value[0])} . {value[4] << 8 | value[5]}"
    parts, at = [], 0
    for kind in types:
        size = SIZES.get(kind, 4)
        parts.append(_spelled(kind, value[at : at + size]))
        at += size
    return " . ".join(parts)


@lru_cache(maxsize=65536)
def _spelled(kind: str, raw: bytes) -> str:
    if kind == "inet_service":
        return str(_U16.unpack_from(raw)[0])
    if kind == "inet_proto":
        return PROTOCOLS.get(raw[0], str(raw[0]))
    return f'"{_text(raw)}"' if kind == "ifname" else str(ip_address(raw))


def _count(expression: bytes) -> Count | None:
    """Read a counter; None for another expression, which somebody else must have written."""
    if expression.startswith(COUNTER) and len(expression) == COUNTER_SIZE:  # as every kernel so far writes it
        return _U64.unpack_from(expression, 32)[0], _U64.unpack_from(expression, 20)[0]
    parts = dict(attributes(expression))
    fields = dict(attributes(parts.get(EXPRESSION_DATA, b"")))
    if len(fields.get(PACKETS, b"")) != _U64.size or len(fields.get(BYTES, b"")) != _U64.size:
        return None
    return _U64.unpack(fields[PACKETS])[0], _U64.unpack(fields[BYTES])[0]


@lru_cache(maxsize=65536)
def _comment(userdata: bytes) -> str:
    """Find a comment among libnftnl's own attributes: a byte for the kind, one for the length, the content."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == COMMENT:
            return _text(userdata[at + 2 : at + 2 + length])
        at += 2 + length
    return ""


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
