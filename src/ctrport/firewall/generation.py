"""Whether somebody else has changed the kernel's packet filter rules, told without reading any of them.

nf_tables counts its transactions in each network namespace, iptables-nft's among them; its generation costs
20 microseconds to ask for, where reading other people's rules costs processes. iptables-legacy counts nothing: of
its nat tables the number of entries and their size is taken instead, which says nothing of a rule that was
replaced by one of the same size.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ctrport.firewall.foreign import iptables
from ctrport.firewall.refused import refused
from ctrport.host.netlink import Netlink, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_NETFILTER = 12
GET_GENERATION = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN: include/uapi/linux/netfilter/nf_tables.h
GENERATION_ID = 1  # NFTA_GEN_ID
REMEMBERED = 1024  # transactions of one's own; the monitor is behind by a few at most
GET_INFO = 64  # IPT_BASE_CTL, which is IPT_SO_GET_INFO and IP6T_SO_GET_INFO
INFO_SIZE = 84  # struct ipt_getinfo: name[32], then hooks, number of entries and their size
FAMILIES = {"ip": (socket.AF_INET, socket.IPPROTO_IP), "ip6": (socket.AF_INET6, socket.IPPROTO_IPV6)}
_libc = ctypes.CDLL(None)
_GENERIC = struct.Struct("!BBH")  # nfgenmsg
# The socket that each thread asks by, in the namespace that the thread is in. It stays open: to close one that
# nf_tables serves waits until what was deleted just before is freed (nft_rcv_nl_event), 10 ms and more.
_asked = threading.local()


class Generation:
    """The kernel's generation less one's own transactions."""

    def __init__(self) -> None:
        self._own = 0
        self._numbers: deque[int] = deque(maxlen=REMEMBERED)  # of one's own transactions

    def is_own(self, number: int) -> bool:
        """Say whether a transaction was one's own, for sure: ask when no block of `own` is at work."""
        return number in self._numbers

    def is_last(self) -> bool:
        """Say whether one's own transaction was the last that anybody made."""
        return bool(self._numbers) and self._numbers[-1] == read()

    def foreign(self) -> tuple[object, ...]:
        """Give what stays the same as long as nobody else changes rules."""
        return read() - self._own, *legacy()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Count the one transaction that the block makes as one's own.

        Somebody's at the same moment still counts as foreign. A block that has changed nothing, as when it adds an
        element that is there, is not counted, unless somebody's transaction falls into that very millisecond: then
        it is taken for ours, and his rules are read after his next one.
        """
        before = read()
        yield  # what fails has changed nothing, and nothing is counted
        after = read()
        self._own += min(1, max(0, after - before))
        if after == before + 1:  # of several nobody can say which was whose
            self._numbers.append(after)


def read() -> int:
    """Give nf_tables' generation in this network namespace."""
    try:
        netlink = _asked.__dict__.pop("netlink", None) or Netlink(NETLINK_NETFILTER)
        answer = netlink.ask(GET_GENERATION, _GENERIC.pack(socket.AF_UNSPEC, 0, 0))
    except OSError as error:
        raise refused("tell the generation of its nftables rules", error) from error
    _asked.netlink = netlink  # not after a failure: an answer that comes late would be taken for the next one's
    return int.from_bytes(dict(attributes(answer, _GENERIC.size))[GENERATION_ID], "big")


def legacy(table: str = "nat") -> tuple[bytes, ...]:
    """Give number of entries and size of each such table of iptables-legacy that is in use."""
    return tuple(_legacy(table, *FAMILIES[family]) for family in iptables.legacy_families(table))


def _legacy(table: str, domain: int, level: int) -> bytes:
    buffer = ctypes.create_string_buffer(table.encode(), INFO_SIZE)  # Python's own getsockopt cannot hand one in
    size = ctypes.c_uint32(INFO_SIZE)
    with socket.socket(domain, socket.SOCK_DGRAM) as asked:
        failed = _libc.getsockopt(asked.fileno(), level, GET_INFO, buffer, ctypes.byref(size))
    return b"" if failed else buffer.raw
