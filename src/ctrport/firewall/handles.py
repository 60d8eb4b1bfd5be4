"""By what the rules of a table are known again without reading them: the kernel's handles.

A handle is given once: to a table in its network namespace, to chains and rules in their table. So handles that are
the same in the same order mean that nobody added or removed any of them, and what can be changed in place is looked
at beside: a table's flags, a chain's policy. A rule that was replaced in place keeps its handle (seen on Linux
6.18), which only a listing finds. Elements are not asked for, of which libnftables reads all even for a terse
listing: 0.2 s with 20,000 of them, where this takes less than 1 ms.
"""

from __future__ import annotations

import errno
import socket
import struct

from ctrport.errors import KernelError
from ctrport.host.netlink import Netlink, attribute, attributes

NETLINK_NETFILTER = 12
# include/uapi/linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES with NFT_MSG_GETTABLE, _GETCHAIN and _GETRULE
GET_TABLE, GET_CHAIN, GET_RULE = 10 << 8 | 1, 10 << 8 | 4, 10 << 8 | 7
TABLE_NAME, TABLE_KEPT = 1, (2, 4)  # flags, handle
CHAIN_TABLE, CHAIN_KEPT = 1, (2, 3, 5)  # handle, name, policy
RULE_TABLE, RULE_KEPT = 1, (2, 3)  # chain, handle
FAMILIES = {"inet": 1, "ip": socket.AF_INET, "ip6": socket.AF_INET6}  # NFPROTO_*
Handles = tuple[tuple[bytes | None, ...], ...]
_GENERIC = struct.Struct("!BBH")  # nfgenmsg


def read(address: str) -> Handles | None:
    """Give what identifies the rules of a table ("inet ctrport"); None when there is no such table."""
    family, table = address.split()
    generic, name = _GENERIC.pack(FAMILIES[family], 0, 0), f"{table}\0".encode()
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            found: list[tuple[bytes, tuple[int, ...]]]
            found = [(netlink.ask(GET_TABLE, generic + attribute(TABLE_NAME, name)), TABLE_KEPT)]
            chains = netlink.dump(GET_CHAIN, generic)
            found += [(chain, CHAIN_KEPT) for chain in chains if _read(chain).get(CHAIN_TABLE) == name]
            rules = netlink.dump(GET_RULE, generic + attribute(RULE_TABLE, name))
            found += [(rule, RULE_KEPT) for rule in rules if _read(rule).get(RULE_TABLE) == name]
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise KernelError(f"the kernel refused to list the handles of table {address}: {error}") from error
    return tuple(tuple(_read(data).get(kind) for kind in kept) for data, kept in found)


def _read(data: bytes) -> dict[int, bytes]:
    return dict(attributes(data, _GENERIC.size))
