"""Frames made by hand: what a neighbour on the same wire can send, whatever honest routing would do."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab import Netns, Protocol

FLAGS = {0x12: "SYN-ACK", 0x14: "RST"}


def forged(
    client: Netns,
    towards: tuple[Netns, str],
    source: str,
    target: str,
    port: int,
    *,
    proto: Protocol = "tcp",
    within: float,
) -> tuple[str, str] | None:
    """Send a TCP SYN or a UDP datagram to an interface's hardware address, from `eth0` of the client.

    Gives who answered it and how ("SYN-ACK", "RST", "datagram"), None when nobody does in time.
    """
    destination, own = hardware_address(*towards), hardware_address(client, "eth0")
    source_port = 40000 + time.monotonic_ns() % 20000
    make = _syn if proto == "tcp" else _datagram
    frame = destination + own + struct.pack("!H", 0x0800) + make(source, source_port, target, port)
    number = socket.IPPROTO_TCP if proto == "tcp" else socket.IPPROTO_UDP

    def roundtrip() -> tuple[str, str] | None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as raw:
            raw.bind(("eth0", 0x0800))
            raw.send(frame)
            deadline = time.monotonic() + within
            while (left := deadline - time.monotonic()) > 0:
                raw.settimeout(left)
                try:
                    got = raw.recv(2048)
                except TimeoutError:
                    break
                packet = got[14:]
                segment = packet[(packet[0] & 15) * 4 :]
                to_port = int.from_bytes(segment[2:4], "big")
                if got[:6] == own and packet[9] == number and to_port == source_port:
                    how = FLAGS[segment[13] & 0x17] if proto == "tcp" else "datagram"
                    return socket.inet_ntoa(packet[12:16]), how
        return None

    return client.call(roundtrip)


def hardware_address(ns: Netns, interface: str) -> bytes:
    """Give the hardware address of an interface."""
    shown = ns.run("ip", "-o", "link", "show", "dev", interface).stdout.split()
    return bytes.fromhex(shown[shown.index("link/ether") + 1].replace(":", ""))


def _syn(source: str, source_port: int, target: str, port: int) -> bytes:
    segment = struct.pack("!HHIIBBHHH", source_port, port, 1000, 0, 5 << 4, 0x02, 65535, 0, 0)
    return _packet(socket.IPPROTO_TCP, source, target, segment, 16)


def _datagram(source: str, source_port: int, target: str, port: int) -> bytes:
    segment = struct.pack("!HHHH", source_port, port, 10, 0) + b"?\n"
    return _packet(socket.IPPROTO_UDP, source, target, segment, 6)


def _packet(protocol: int, source: str, target: str, segment: bytes, at: int) -> bytes:
    """Give an IPv4 packet; both checksums are right, the segment's is put where it belongs."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    checked = _checksum(addresses + struct.pack("!HH", protocol, len(segment)) + segment)
    segment = segment[:at] + struct.pack("!H", checked) + segment[at + 2 :]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, protocol, 0) + addresses
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + segment


def _checksum(data: bytes) -> int:
    """Give the Internet checksum of an even number of bytes (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
