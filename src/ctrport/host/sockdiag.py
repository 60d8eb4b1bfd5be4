"""The sockets of this network namespace, by sock_diag(7): the kernel filters by state and port.

/proc/net/tcp prints every connection of the host, and does not show whether a [::] socket takes IPv4 as well.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from ctrport.errors import KernelError
from ctrport.host.netlink import Netlink, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
# include/net/tcp_states.h; an unconnected UDP socket is in state CLOSE. BOUND_INACTIVE (bound, neither listening
# nor connected) is told since Linux 6.8; older kernels ignore the bit.
CLOSE, LISTEN, BOUND_INACTIVE = 7, 10, 13
EVERY_STATE = 0xFFFFFFFF
# include/uapi/linux/inet_diag.h: INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_JMP and _DEV_COND, INET_DIAG_SKV6ONLY
BYTECODE, JUMP, DEVICE_CONDITION, SKV6ONLY = 1, 1, 9, 11
_FILTER = struct.Struct("=BBHIBBH")  # two of inet_diag_bc_op, the first with an interface
_REQUEST = struct.Struct("=BBBxI2s46x")  # inet_diag_req_v2; of inet_diag_sockid only the local port
_ANSWER = struct.Struct("=BBxx2s2x16s16xI8x12xII")  # inet_diag_msg


class Socket(NamedTuple):
    """One socket of the host."""

    address: IPv4Address | IPv6Address
    port: int
    families: tuple[int, ...]  # 4, 6 or both
    state: int
    uid: int
    inode: int  # 0 when no process has it any more (TIME_WAIT)
    interface: int  # the index of the one that it is bound to, 0 for none


def sockets(protocol: int, states: int, *, port: int = 0, but_on: int = 0) -> Iterator[Socket]:
    """Give the sockets of IPPROTO_TCP or IPPROTO_UDP in some states (bits), if need be of one local port only.

    Those bound to the interface `but_on` are left out, by the kernel.

    Where the kernel has no sock_diag for a protocol nothing is given, and the log says so. KernelError when it
    has, and refuses.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, protocol, 0, states, port.to_bytes(2, "big"))
        if but_on:
            # Each step has its jumps: if true (which must lead to the end by steps), if not. To arrive at the end
            # accepts, beyond it rejects. The first goes to the second or to the end, the second always beyond.
            request += attribute(BYTECODE, _FILTER.pack(DEVICE_CONDITION, 8, 12, but_on, JUMP, 4, 8))
        try:
            with Netlink(NETLINK_SOCK_DIAG) as netlink:
                for data in netlink.dump(SOCK_DIAG_BY_FAMILY, request):
                    found = _read(data)
                    if port in (0, found.port):  # Linux 6.18 does not filter sockets that are only bound
                        yield found
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EPROTONOSUPPORT):
                raise KernelError(
                    f"the kernel refused to list sockets (IP protocol {protocol}): {error}"
                ) from error
            log.warning("cannot see who listens (IP protocol %d): modprobe tcp_diag udp_diag", protocol)


def _read(data: bytes) -> Socket:
    family, state, port, raw, interface, uid, inode = _ANSWER.unpack_from(data)
    address: IPv4Address | IPv6Address = IPv4Address(raw[:4])
    families: tuple[int, ...] = (4,)
    if family == socket.AF_INET6:
        ipv6 = IPv6Address(raw)
        address = ipv6.ipv4_mapped or ipv6
        families = (address.version,)
        if ipv6.is_unspecified and not any(dict(attributes(data, _ANSWER.size)).get(SKV6ONLY, b"")):
            families = (4, 6)
    return Socket(address, int.from_bytes(port, "big"), families, state, uid, inode, interface)
