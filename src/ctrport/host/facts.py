"""What the ledger has to know of this host: addresses, port ranges, and who listens."""

from __future__ import annotations

import functools
import pwd
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.host import sockdiag, sysctl
from ctrport.model.bindings import IPV6_LOOPBACK, Host, Listener
from ctrport.model.ports import Protocol
from ctrport.network import proc

if TYPE_CHECKING:
    from collections.abc import Iterable

IP_PROTOCOLS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
# Sockets that only hold a port (host/reservation) are bound to this interface, which no host has: any process of
# ours tells them by it from somebody else's.
NO_INTERFACE = 0x7FFFFF00
# Those that relay [::1] (host/relay) are bound to this one, which is always lo: who binds an address of lo has no
# reason to do that as well.
LOOPBACK_INTERFACE = 1


def read(*, relays: bool = False) -> Host:
    """Read this network namespace; whether tcp from [::1] is relayed here is for the caller to say."""
    low, high = (sysctl.read("net/ipv4/ip_local_port_range") or "32768 60999").split()
    return Host(
        addresses=frozenset(proc.read().addresses),
        automatic=(int(low), int(high)),
        reserved=reserved_ports(sysctl.read("net/ipv4/ip_local_reserved_ports") or ""),
        listeners=listeners(),
        relays=relays,
    )


def reserved_ports(text: str) -> frozenset[int]:
    """Read net.ipv4.ip_local_reserved_ports: `8080,9148-9150`."""
    ports: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        ports.update(range(int(low), int(high or low) + 1))
    return frozenset(ports)


def listeners() -> tuple[Listener, ...]:
    """Give the sockets that wait for somebody: TCP in LISTEN, UDP unconnected. Connections do not count."""
    return (
        *sockets(Protocol.TCP, 1 << sockdiag.LISTEN),
        *sockets(Protocol.UDP, 1 << sockdiag.CLOSE),
    )


def sockets(protocol: Protocol, states: int, port: int = 0) -> tuple[Listener, ...]:
    """Give the host's sockets in some states but for those that hold a port or relay [::1] for us."""
    return tuple(
        Listener(protocol, s.port, s.address, s.families, _user(s.uid), s.inode)
        for s in sockdiag.sockets(IP_PROTOCOLS[protocol], states, port=port, but_on=NO_INTERFACE)
        if not _relays(s)
    )


def _relays(one: sockdiag.Socket) -> bool:
    where = (one.state, one.address, one.interface)
    return where == (sockdiag.LISTEN, IPV6_LOOPBACK, LOOPBACK_INTERFACE)


def named(listeners: Iterable[Listener]) -> dict[Listener, Listener]:
    """Give each with the name of its process, where that can be seen: one look at all processes, 20 ms and more."""
    wanted = {f"socket:[{listener.inode}]": listener for listener in listeners if listener.inode}
    found: dict[Listener, Listener] = {}
    for entry in Path("/proc").iterdir() if wanted else ():
        if not entry.name.isdigit():
            continue
        try:
            for descriptor in (entry / "fd").iterdir():
                if listener := wanted.get(str(descriptor.readlink())):
                    name = (entry / "comm").read_text("utf-8", "replace").strip()
                    found.setdefault(listener, listener._replace(holder=f"{name} (pid {entry.name})"))
        except OSError:  # gone, or not ours to see: that takes CAP_SYS_PTRACE
            continue
        if len(found) == len(wanted):
            break
    return found


@functools.cache
def _user(uid: int) -> str:
    try:
        return f"a process of user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"a process of user {uid}"
