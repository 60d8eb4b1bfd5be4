"""What the ledger has to know of this host: addresses, port ranges, and who listens."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from ctrport.host import sysctl
from ctrport.model.bindings import Host, Listener
from ctrport.model.ports import Protocol
from ctrport.network import proc

LISTEN, CLOSE = "0A", "07"  # include/net/tcp_states.h; an unconnected UDP socket is in state CLOSE


def read() -> Host:
    """Read this network namespace."""
    low, high = (sysctl.read("net/ipv4/ip_local_port_range") or "32768 60999").split()
    return Host(
        addresses=frozenset(proc.read().addresses),
        automatic=(int(low), int(high)),
        reserved=reserved_ports(sysctl.read("net/ipv4/ip_local_reserved_ports") or ""),
        listeners=listeners(),
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
    found = []
    for name, protocol, state in (
        ("tcp", Protocol.TCP, LISTEN),
        ("tcp6", Protocol.TCP, LISTEN),
        ("udp", Protocol.UDP, CLOSE),
        ("udp6", Protocol.UDP, CLOSE),
    ):
        try:
            text = Path(f"/proc/thread-self/net/{name}").read_text("ascii")
        except FileNotFoundError:  # a kernel without IPv6
            continue
        found += [
            Listener(protocol, port, address, families, f"a process that listens there (socket {inode})")
            for address, port, families, inode in sockets(text, state)
        ]
    return tuple(found)


def sockets(text: str, state: str) -> list[tuple[IPv4Address | IPv6Address, int, tuple[int, ...], int]]:
    """Read /proc/net/tcp and its kin: address, port, families served and inode of the sockets in one state."""
    found: list[tuple[IPv4Address | IPv6Address, int, tuple[int, ...], int]] = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if fields[3] != state:
            continue
        raw_address, _, raw_port = fields[1].partition(":")
        address = _address(raw_address)
        # IPV6_V6ONLY does not show here: a [::] socket is taken to serve IPv4 as well, as it does by default.
        families: tuple[int, ...] = (4, 6) if address == IPv6Address("::") else (address.version,)
        found.append((address, int(raw_port, 16), families, int(fields[9])))
    return found


def process_of(inode: int) -> str:
    """Give `name (pid N)` of a process that has a socket, empty when none can be seen."""
    wanted = f"socket:[{inode}]"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            for descriptor in (entry / "fd").iterdir():
                if str(descriptor.readlink()) == wanted:
                    return f"{(entry / 'comm').read_text('utf-8', 'replace').strip()} (pid {entry.name})"
        except OSError:  # gone, or not ours to see
            continue
    return ""


def _address(text: str) -> IPv4Address | IPv6Address:
    """Read an address in 32-bit words of the machine's byte order."""
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    if len(raw) == 4:  # noqa: PLR2004 - bytes of an IPv4 address
        return IPv4Address(raw)
    address = IPv6Address(raw)
    return address.ipv4_mapped or address
