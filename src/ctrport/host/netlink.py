"""Just enough netlink: dumps, batches of requests, and attributes, over a plain socket.

Knows the framing and nothing of what is asked. pyroute2 knows far more, but costs 150 ms to import, which commands
that only look must not pay, and over 100 microseconds a message, which counts with tens of thousands of flows.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300  # flags, include/uapi/linux/netlink.h
ERROR, DONE = 0x2, 0x3  # message types
NESTED, TYPE_MASK = 0x8000, 0x3FFF
BATCH = 100  # requests a datagram: their answers must fit into the default receive buffer
PATIENCE = 5.0  # seconds; the kernel answers at once or not at all
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")


class Netlink:
    """A netlink socket of one protocol, in the network namespace of the thread that made it."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.settimeout(PATIENCE)
        self._answered = True  # whether the last answer was read to its end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(self, kind: int, payload: bytes) -> Iterator[bytes]:
        """Give the payload of each message that answers a request for a listing. OSError as the kernel says."""
        yield from self._answers(kind, REQUEST | DUMP, payload)

    def ask(self, kind: int, payload: bytes) -> bytes:
        """Give the payload of the one message that answers a request. OSError as the kernel says."""
        return b"".join(self._answers(kind, REQUEST | ACK, payload))

    def _answers(self, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
        if not self._answered:
            self._drain()
        self._answered = False
        self._socket.send(_message(kind, flags, payload))
        while True:
            for answer, data in self._receive():
                if answer in (ERROR, DONE):
                    self._answered = True
                    # Both begin with a code; a dump that failed after its start says so in DONE.
                    _raise(_CODE.unpack_from(data)[0] if len(data) >= _CODE.size else 0)
                    return
                yield data

    def _drain(self) -> None:
        """Take what is left of an answer that nobody has read to its end."""
        self._socket.settimeout(0)
        try:
            while self._socket.recv(1 << 18):
                pass
        except BlockingIOError:
            self._socket.settimeout(PATIENCE)

    def batch(self, kind: int, payloads: Sequence[bytes]) -> list[int]:
        """Send requests that answer with a code alone; gives the errno of each, 0 for done."""
        codes: list[int] = []
        for start in range(0, len(payloads), BATCH):
            part = payloads[start : start + BATCH]
            self._socket.send(b"".join(_message(kind, REQUEST | ACK, payload) for payload in part))
            while len(codes) < start + len(part):
                codes += [-_CODE.unpack_from(data)[0] for answer, data in self._receive() if answer == ERROR]
        return codes

    def join(self, group: int) -> None:
        """Have what the kernel tells a multicast group sent here from now on."""
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def pending(self, patience: float) -> Iterator[tuple[int, bytes]]:
        """Give type and payload of what has arrived, until nothing more comes for `patience` seconds."""
        self._socket.settimeout(patience)
        try:
            while True:
                yield from self._receive()
        except TimeoutError:
            self._socket.settimeout(PATIENCE)

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        return messages(self._socket.recv(1 << 18))


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give type and payload of each message of a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += _aligned(length)


def attribute(kind: int, *parts: bytes) -> bytes:
    """Give one attribute with its padding; a nested one has `NESTED` in its kind."""
    data = b"".join(parts)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes, offset: int = 0) -> Iterable[tuple[int, bytes]]:
    """Give kind and content of each attribute, in the kernel's order."""
    end = len(data)
    while offset + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


def _message(kind: int, flags: int, payload: bytes) -> bytes:
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, kind, flags, 1, 0) + payload + bytes(-length % 4)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _raise(code: int) -> None:
    if code < 0:
        raise OSError(-code, os.strerror(-code))
