"""What is done to nftables, as the kernel tells it: each transaction once, its tables and who made it.

Only names are read of a notification, never rules or elements: what should be is known, and what is gets listed.
A transaction ends with the kernel's NEWGEN, which carries the number of the new generation and the name of the
thread that committed. Whose it was is for the reader to say, by the generation: the pid that is told is that of a
thread, as the first pid namespace counts.

iptables-legacy tells nobody of what it does; only looking finds it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ctrport.host.netlink import attributes, messages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)
NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES, the upper byte of a message's type
# include/uapi/linux/netfilter/nf_tables.h. The first attribute of every other object is the name of its table.
DELETE_TABLE, NEW_GENERATION = 2, 15
TABLE_NAME = 1
GENERATION, PROCESS_ID, PROCESS_NAME = 1, 2, 3
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
BUFFER = 8 << 20  # bytes of unread notifications: a table of 20,000 elements is told element by element
_FAMILY = struct.Struct("=B3x")  # of nfgenmsg
_U16 = struct.Struct("=H")
_U32 = struct.Struct("!I")
NAMES = 256  # of tables that are remembered; whoever makes thousands is read each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One transaction."""

    generation: int  # 0 when notifications were lost, and nothing is known of what was done
    process: str = ""  # "nft (pid 811)"
    touched: frozenset[str] = frozenset()  # tables, "inet filter"
    deleted: frozenset[str] = frozenset()  # those of them that were deleted


@dataclass(slots=True)
class _Transaction:
    """What was told so far of a transaction that has not ended."""

    touched: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


class Monitor:
    """A subscription to nftables' notifications, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_NETFILTER)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._force_buffer()
            self._socket.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
        except OSError:
            self._socket.close()
            raise
        self._begun = _Transaction()
        self._names: dict[bytes, str] = {}  # of tables, by what a message begins with

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _force_buffer(self) -> None:
        """Take more than net.core.rmem_max, for which CAP_NET_ADMIN is needed where the socket's host began."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        except PermissionError:
            log.debug("the kernel keeps fewer unread notifications of nftables than wanted")

    async def commits(self) -> AsyncIterator[Commit]:
        """Give each transaction from now on. OSError when the socket fails for good."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._socket, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                for commit in self.read():
                    yield commit
        finally:
            loop.remove_reader(self._socket)

    def read(self) -> list[Commit]:
        """Give the transactions that have ended among what is there to be read, without waiting."""
        found: list[Commit] = []
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                log.warning("more was done to nftables than could be followed")
                self._begun = _Transaction()
                found.append(Commit(generation=0))
                continue
            found += [commit for kind, payload in messages(data) if (commit := self._take(kind, payload))]

    def _take(self, kind: int, payload: bytes) -> Commit | None:
        """Take one message; gives the transaction that it ends."""
        if kind >> 8 != SUBSYSTEM:
            return None
        if kind & 0xFF == NEW_GENERATION:
            fields = dict(attributes(payload, _FAMILY.size))
            begun, self._begun = self._begun, _Transaction()
            return Commit(
                generation=_U32.unpack(fields[GENERATION])[0],
                process=_process(fields),
                touched=frozenset(begun.touched),
                deleted=frozenset(begun.deleted),
            )
        # The name comes first, and of tens of thousands of elements it is the same: read once.
        start = payload[: _FAMILY.size + _U16.unpack_from(payload, _FAMILY.size)[0]]
        if (table := self._names.get(start)) is None:
            table = self._named(payload)
            if len(self._names) >= NAMES:
                self._names.clear()
            self._names[start] = table
        self._begun.touched.add(table)
        if kind & 0xFF == DELETE_TABLE:
            self._begun.deleted.add(table)
        return None

    @staticmethod
    def _named(payload: bytes) -> str:
        name = next((content for number, content in attributes(payload, _FAMILY.size) if number == TABLE_NAME), b"")
        return f"{FAMILIES.get(_FAMILY.unpack_from(payload)[0], '?')} {_text(name)}"


def _process(fields: dict[int, bytes]) -> str:
    """Name who committed, as far as the kernel tells (since Linux 4.14)."""
    pid, name = fields.get(PROCESS_ID, b""), _text(fields.get(PROCESS_NAME, b""))
    return f"{name} (pid {_U32.unpack(pid)[0]})" if name and len(pid) == _U32.size else "another process"


def _text(raw: bytes) -> str:
    """Read a name; whoever may write to nftables may choose any, also one that would disturb a terminal."""
    text = raw.rstrip(b"\0").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)
