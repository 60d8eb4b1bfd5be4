"""Who listens inside a container, read from /proc/PID/net without entering its namespace. The parser is pure.

The kernel prints addresses as 32-bit words in the machine's own byte order (little-endian here). Of a [::] socket
it does not say whether it takes IPv4 as well: most do.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ctrport.model.ports import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

WAITING = {Protocol.TCP: "0A", Protocol.UDP: "07"}  # LISTEN, and CLOSE as an unconnected UDP socket is in


class Open(NamedTuple):
    """A socket that waits for somebody."""

    address: IPv4Address | IPv6Address
    port: int

    def serves(self, family: int) -> bool:
        """Say whether clients of another host may reach it over IPv4 or IPv6."""
        if self.address.is_loopback:
            return False
        return self.address.version == family or self.address == IPv6Address(0)


def read(pid: int, protocol: Protocol) -> list[Open]:
    """Give what listens in a process's network namespace. OSError when it is gone or not ours to see."""
    found: list[Open] = []
    for name in (str(protocol), f"{protocol}6"):
        path = Path(f"/proc/{pid}/net/{name}")
        if name.endswith("6") and not path.exists():  # a kernel without IPv6
            continue
        found += parse(path.read_text("ascii"), WAITING[protocol])
    return found


def parse(table: str, state: str) -> Iterator[Open]:
    """Read /proc/net/{tcp,tcp6,udp,udp6}: the sockets in one state."""
    for line in table.splitlines()[1:]:
        _, local, _, found, *_ = line.split()
        address, _, port = local.partition(":")
        if found == state:
            words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
            raw = b"".join(words)
            ip = IPv4Address(raw) if len(words) == 1 else IPv6Address(raw)
            yield Open(getattr(ip, "ipv4_mapped", None) or ip, int(port, 16))
