"""nft's trace of one connection of our own: which rules of whose tables it meets, as the kernel tells.

A table of our own marks the packets of one local port for tracing and decides nothing; it is there for as long as
the connection is tried. The events are read from netlink: `nft monitor trace` lists the whole ruleset first, does
not say when it is ready, and prints no JSON. Rules of iptables-legacy do not show. `flags owner`, by which the
kernel would take the table away by itself, makes libnftables 1.0.6 print garbage to whoever lists tables as JSON
meanwhile.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ctrport.errors import KernelError
from ctrport.host.netlink import Netlink, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.firewall.nft import Nft

ADDRESS = "inet ctrport-doctor"
NETLINK_NETFILTER, GROUP_TRACE, MESSAGE_TRACE = 12, 9, 0x0A11  # NFNLGRP_NFTRACE, NFT_MSG_TRACE of nf_tables
# include/uapi/linux/netfilter/nf_tables.h: NFTA_TRACE_*, NFTA_VERDICT_CODE, NFT_TRACETYPE_*
TABLE, CHAIN, HANDLE, TYPE, VERDICT, POLICY = 1, 2, 3, 4, 5, 16
VERDICT_CODE, BY_POLICY, BY_RULE = 1, 1, 3
FAMILIES = {1: "inet", 2: "ip", 7: "bridge", 10: "ip6", 5: "netdev"}  # NFPROTO_*
DROP, ACCEPT = 0, 1
QUIET = 0.05  # seconds without an event after which there are no more: the kernel tells at once
_U32, _I32, _U64 = struct.Struct("!I"), struct.Struct("!i"), struct.Struct("!Q")


class Step(NamedTuple):
    """A rule that matched, or a chain's policy."""

    table: str  # "ip filter"
    chain: str
    handle: int | None  # of the rule; None: the policy
    verdict: int  # DROP, ACCEPT, or below zero: the packet goes on

    def __str__(self) -> str:
        by = "policy" if self.handle is None else f"rule with handle {self.handle}"
        return f"table {self.table}, chain {self.chain}: {by}"


@contextmanager
def traced(nft: Nft, protocol: str, source_port: int) -> Iterator[list[Step]]:
    """Trace what this host sends from one local port in the block; gives the list that is filled at its end.

    KernelError or HostError when the kernel does not let us.
    """
    steps: list[Step] = []
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            netlink.join(GROUP_TRACE)
            try:
                nft.apply(_script(protocol, source_port))
                yield steps
                steps += (step for kind, data in netlink.pending(QUIET) if (step := read(kind, data)))
            finally:
                remove(nft)
    except OSError as error:
        raise KernelError(f"the kernel does not tell of traced packets: {error}") from error


def remove(nft: Nft) -> bool:
    """Take the table away; says whether it was there."""
    try:
        nft.apply(f"delete table {ADDRESS}\n")
    except KernelError:  # no such table
        return False
    return True


def read(kind: int, data: bytes) -> Step | None:
    """Read one event; None when it is of our own table, or says nothing of a rule or policy."""
    found = dict(attributes(data, 4))
    if kind != MESSAGE_TRACE or TYPE not in found:
        return None
    table, chain = (found.get(name, b"").rstrip(b"\0").decode("ascii", "replace") for name in (TABLE, CHAIN))
    where = f"{FAMILIES.get(data[0], '?')} {table}"
    event = _U32.unpack(found[TYPE])[0]
    if where == ADDRESS or event not in (BY_POLICY, BY_RULE):
        return None
    if event == BY_POLICY:
        return Step(where, chain, None, _U32.unpack(found[POLICY])[0])
    if HANDLE not in found:  # the end of a chain without a policy
        return None
    verdict = dict(attributes(found.get(VERDICT, b"")))
    return Step(where, chain, _U64.unpack(found[HANDLE])[0], _I32.unpack(verdict[VERDICT_CODE])[0])


def _script(protocol: str, source_port: int) -> str:
    return (
        f"add table {ADDRESS}\n"  # left by one that was killed, perhaps
        f"delete table {ADDRESS}\n"
        f"add table {ADDRESS}\n"
        f"add chain {ADDRESS} output {{ type filter hook output priority -400; policy accept; }}\n"  # before raw
        f"add rule {ADDRESS} output meta l4proto {protocol} th sport {source_port} meta nftrace set 1\n"
    )
