"""One try to connect, bounded in time, from this host."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from ctrport.doctor.journey import Outcome
from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from ctrport.model.bindings import IPAddress

PATIENCE = 1.0  # seconds
UDP_PATIENCE = 0.3  # seconds for a refusal: nothing else can be expected


def opened(address: IPAddress, protocol: Protocol) -> socket.socket:
    """Give a socket with a local port of its own."""
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    made = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, kind)  # noqa: PLR2004 - an IP version
    made.bind(("", 0))
    return made


def knock(made: socket.socket, address: IPAddress, port: int) -> Outcome:
    """Connect, and close at once; of UDP an empty datagram. Says what came back."""
    datagram = made.type == socket.SOCK_DGRAM
    made.settimeout(UDP_PATIENCE if datagram else PATIENCE)
    try:
        made.connect((str(address), port))
        if datagram:
            made.send(b"")
            made.recv(1)
    except TimeoutError:
        return Outcome.SENT if datagram else Outcome.DROPPED
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            return Outcome.REFUSED
        # EPERM: dropped before it left; what else has no route or is told so by somebody on the way.
        return Outcome.DROPPED if error.errno == errno.EPERM else Outcome.UNREACHABLE
    return Outcome.ANSWERED


def try_port(address: IPAddress, port: int, protocol: Protocol) -> Outcome:
    """Make one try with a socket of its own."""
    with opened(address, protocol) as made:
        return knock(made, address, port)
